# The formula for a tap. `make formula` fills in version, address and checksum; the project has no public address yet.
class Orbd < Formula
  desc "Queues, joins, caches and records every orbctl invocation of a user"
  homepage "@HOMEPAGE@"
  url "@URL@"
  version "@VERSION@"
  sha256 "@SHA256@"
  license any_of: ["MIT", "Apache-2.0"]

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args
    system "cargo", "install", *std_cargo_args(path: "clients/orbd-ctl")
    generate_completions_from_executable(bin/"orbd-ctl", "completions")
    system bin/"orbd-ctl", "man", "--to", man1
  end

  # The same as `orbd-ctl service install` writes; see launchd/README.md.
  service do
    run opt_bin/"orbd"
    keep_alive successful_exit: false
    run_at_load true
    throttle_interval 5
    process_type :interactive
    environment_variables PATH: "#{Dir.home}/.orbstack/bin:#{std_service_path_env}"
    error_log_path var/"log/orbd.err"
    log_path var/"log/orbd.err"
  end

  def caveats
    <<~EOS
      orbd starts on demand. To keep it running, one of:
        orbd-ctl service install
        brew services start orbd
      An upgrade takes over by itself; `orbd-ctl daemon status` says what it waits for.
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/orbd --version")
    assert_match "explains every key", shell_output("#{bin}/orbd --help")
    assert_match "<key>ProgramArguments</key>", shell_output("#{bin}/orbd-ctl service install --print")
  end
end
