# The guest's end of a channel: a loop for any POSIX sh, which executes one command after the other.
#
# The daemon removes these comments, joins the lines with spaces and sends the result as the first line of input, with an assignment
# of orbd_token before it. `guest.rs` has the protocol. Every variable has a prefix: assigning to a variable that the user exports
# would change it for every command.
#
# Descriptors: 7 is the channel's input, 8 and 9 are its output streams. A command gets 3 as stdout and 4 as stderr; each is a pipe
# to a `cat` that was started before the command arrived. 5 leads to the watcher. 6 is a pipe whose time is that of the opening.

orbd_cwd=$PWD;
exec 7<&0 8>&1 9>&2 </dev/null >/dev/null 2>/dev/null;
cd /;
orbd_nl=${IFS#??};
eval "exec 6<<E${orbd_nl}x${orbd_nl}E${orbd_nl}";

# One subshell finds the programs, and the SHLVL that a `sh` sees which we start. Some shells count, some do not.
orbd_missing=; orbd_tools=; orbd_sh=; orbd_level=;
orbd_x=$(
  for orbd_x in setsid cat head sleep sh; do command -v $orbd_x || echo "-$orbd_x"; done;
  (exec sh -c 'echo "${SHLVL-}"')
);
for orbd_x in $orbd_x; do
  case $orbd_x in
    */sh) orbd_sh=$orbd_x ;;
    /*) orbd_tools="$orbd_tools $orbd_x" ;;
    -*) orbd_missing="$orbd_missing ${orbd_x#-}" ;;
    *[!0-9]*) ;;
    *) orbd_level=$orbd_x ;;
  esac;
done;
# The value with which a `sh` that we start sees the SHLVL that this one saw.
case ${SHLVL-} in
  '' | *[!0-9]*) orbd_level= ;;
  *) orbd_level=$((SHLVL + SHLVL - ${orbd_level:-$SHLVL})) ;;
esac;
[ /proc/self/fd/6 -ef /proc/self/fd/6 ] || orbd_missing="$orbd_missing /proc";
[ "$orbd_sh" -ef /proc/self/exe ] || orbd_missing="$orbd_missing sh";
orbd_host=; read -r orbd_host </proc/sys/kernel/hostname;

# Sets orbd_why and succeeds if a new `orbctl run` would start with another environment than this one did.
orbd_is_stale() {
  for orbd_why in /etc /etc/environment /etc/profile /etc/profile.d /etc/profile.d/* /etc/passwd /etc/group /etc/login.defs \
    /etc/security /etc/security/limits.conf /etc/security/limits.d /etc/security/limits.d/* /etc/pam.d /etc/bash.bashrc /etc/bashrc \
    /etc/zsh /etc/zsh/* /etc/fish /etc/fish/* /etc/fish/conf.d/* \
    "$HOME/.profile" "$HOME/.bash_profile" "$HOME/.bash_login" "$HOME/.bashrc" \
    "$HOME/.zshenv" "$HOME/.zprofile" "$HOME/.zlogin" "$HOME/.config/fish" "$HOME/.config/fish/conf.d" \
    "$HOME/.config/fish/config.fish" "$HOME/.config/fish/fish_variables" "$HOME"/.config/fish/conf.d/*;
  do
    if [ "$orbd_why" -nt /proc/self/fd/6 ]; then return 0; fi;
  done;
  orbd_why=sh;
  [ "$orbd_sh" -ef /proc/self/exe ] || return 0;
  for orbd_why in $orbd_tools; do
    [ -x "$orbd_why" ] || return 0;
  done;
  orbd_why=hostname; orbd_x=; read -r orbd_x </proc/sys/kernel/hostname;
  [ "$orbd_x" = "$orbd_host" ] || return 0;
  return 1;
};

# Replaces this shell with the command, in a session of its own. The pid is reported before the command exists.
orbd_exec() {
  exec 6<&- 7<&- 9>&-;
  cd "$orbd_cwd";
  if [ "$orbd_level" ]; then SHLVL=$orbd_level; fi;
  read -r orbd_x orbd_y </proc/self/stat;
  printf '%s\n' "$orbd_x" >&5;
  printf '\036%s A %s\n' "$orbd_token" "$orbd_x" >&8;
  exec setsid "$@" 5>&- 8>&- 2>&4 4>&-;
};

# Reads frames until one command was executed or declined.
orbd_turn() {
  orbd_stdin=; orbd_data=;
  while IFS=' ' read -r orbd_x orbd_y orbd_rest <&7; do
    case $orbd_x in
      P) printf '\036%s P %s\n' "$orbd_token" "$orbd_y" >&8 ;;
      I)
        case $orbd_y in
          0) orbd_data=${orbd_rest%.} ;;
          *) orbd_data=$(head -c "$orbd_y" <&7); orbd_data=${orbd_data%.}; printf '\036%s C\n' "$orbd_token" >&8 ;;
        esac;
        orbd_stdin=1 ;;
      X)
        case $orbd_y in 0) ;; *) orbd_rest=$(head -c "$orbd_y" <&7) ;; esac;
        case $orbd_rest in *"#$orbd_token") ;; *) return ;; esac;
        if orbd_is_stale; then
          printf '\036%s N %s\n' "$orbd_token" "$orbd_why" >&8;
          printf '%s\n' - >&5;
          return;
        fi;
        eval "$orbd_rest";
        orbd_rest=;
        if [ "$orbd_stdin" ]; then
          {
            ( printf %b "$orbd_data" 3>&- 4>&- 5>&- 6<&- 7<&- 8>&- 9>&- & ) && printf '\036%s W\n' "$orbd_token" >&8;
          } | ( orbd_exec "$@" );
        else
          ( orbd_exec "$@" );
        fi;
        printf '\036%s E %s\n' "$orbd_token" $? >&8;
        printf '\036%s O\n' "$orbd_token";
        printf '\036%s O\n' "$orbd_token" >&4;
        return ;;
    esac;
  done;
};

# Passes signals to the command while the turn waits for its end. At the end of the input, ends the command and then the loop.
orbd_watch() {
  read -r orbd_group || exit 1;
  [ "$orbd_group" != - ] || exit 0;
  trap orbd_end TERM INT HUP;
  while IFS=' ' read -r orbd_x orbd_y <&7; do
    case $orbd_x in
      K) orbd_signal "$orbd_y" ;;
      D) exit 0 ;;
    esac;
  done;
  orbd_end;
};

# Ends the command, and this watcher.
orbd_end() {
  trap '' TERM INT HUP;
  orbd_signal TERM;
  for orbd_x in 1 2 3 4 5; do
    kill -s 0 -- "-$orbd_group" || exit 1;
    sleep 1;
  done;
  orbd_signal KILL;
  exit 1;
};

# The group exists only once `setsid` has run.
orbd_signal() {
  kill -s "$1" -- "-$orbd_group" || kill -s "$1" "$orbd_group";
};

printf '\036%s H %s%s\n' "$orbd_token" $$ "$orbd_missing" >&8;
printf '\036%s H\n' "$orbd_token" >&9;
orbd_n=0;
while
  orbd_n=$((orbd_n + 1));
  {
    {
      {
        orbd_turn 4>&1 >&3 3>&- 9>&- | exec cat >&9 3>&- 5>&- 6<&- 7<&- 8>&- 9>&-;
      };
      printf '\036%s Z %s %s\n' "$orbd_token" "$orbd_n" $? >&9;
    } 3>&1 | exec cat >&8 5>&- 6<&- 7<&- 8>&- 9>&-;
    printf '\036%s Z %s %s\n' "$orbd_token" "$orbd_n" $? >&8;
  } 5>&1 | orbd_watch 8>&- 9>&-;
do :; done
