/* An orbctl that does nothing: `run` succeeds immediately, any other command prints the file of its name in $INSTANT_ORBCTL. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int count, char **words) {
    char path[4096], piece[4096];
    const char *folder = getenv("INSTANT_ORBCTL");
    if (count < 2 || folder == NULL) return 64;
    if (strcmp(words[1], "run") == 0) return 0;
    snprintf(path, sizeof path, "%s/%s", folder, words[1]);
    FILE *file = fopen(path, "r");
    if (file == NULL) return 1;
    for (size_t length; (length = fread(piece, 1, sizeof piece, file)) > 0;) fwrite(piece, 1, length, stdout);
    return 0;
}
