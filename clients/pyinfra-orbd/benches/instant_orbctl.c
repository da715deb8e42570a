/* An orbctl that does nothing: `run` succeeds immediately, any other command prints the file of its name beside this program. */

#include <stdio.h>
#include <string.h>

int main(int count, char **words) {
    char path[4096], piece[4096];
    const char *slash = strrchr(words[0], '/');
    if (count < 2 || slash == NULL) return 64;
    if (strcmp(words[1], "run") == 0) return 0;
    snprintf(path, sizeof path, "%.*s/%s", (int)(slash - words[0]), words[0], words[1]);
    FILE *file = fopen(path, "r");
    if (file == NULL) return 1;
    for (size_t length; (length = fread(piece, 1, sizeof piece, file)) > 0;) fwrite(piece, 1, length, stdout);
    return 0;
}
