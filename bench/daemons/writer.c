/* Writes SIZE bytes of 100-byte lines, in blocks of 64 KiB or line by line; then says so and waits for the end.
 *
 * Usage: writer MAILBOX blocks|lines SIZE; SIZE 0: forever.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE 100
#define BLOCK 65536

int main(int argc, char **argv) {
    static char text[LINE * BLOCK];
    int report = argc == 4 ? open(argv[1], O_WRONLY) : -1;
    if (report < 0 || dprintf(report, "%d\n", getpid()) < 0)
        return 1;
    long long left = atoll(argv[3]), endless = left == 0;
    size_t piece = strcmp(argv[2], "blocks") == 0 ? BLOCK : LINE;
    memset(text, 'x', sizeof text);
    for (size_t end = LINE - 1; end < sizeof text; end += LINE)
        text[end] = '\n';
    for (size_t at = 0; endless || left > 0; at = (at + piece) % sizeof text, left -= (long long)piece)
        if (write(1, text + at, piece) != (ssize_t)piece)
            return 1;
    dprintf(report, "done\n");
    for (;;)
        pause();
}
