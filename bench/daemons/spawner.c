/* Forks, executes and nothing else: what the kernel alone needs to start COUNT daemons.
 *
 * Usage: spawner COUNT PROGRAM [ARGUMENT...]
 */

#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    for (int left = argc > 2 ? atoi(argv[1]) : 0; left > 0; left--) {
        pid_t pid = fork();
        if (pid == 0) {
            execv(argv[2], argv + 2);
            _exit(127);
        }
        if (pid < 0)
            return 1;
    }
    for (;;)
        pause();
}
