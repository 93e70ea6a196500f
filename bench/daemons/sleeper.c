/* Reports its pid once it runs, and sleeps; it keeps the mailbox open until it ends.
 *
 * Usage: sleeper MAILBOX
 */

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int report = argc == 2 ? open(argv[1], O_WRONLY) : -1;
    if (report < 0 || dprintf(report, "%d\n", getpid()) < 0)
        return 1;
    for (;;)
        pause();
}
