/* Set a fork's clock, and have its kernel use at once what has been written to /dev/urandom, which would otherwise take it a minute.
 *
 *   apart SECONDS    the time, in seconds since 1970
 *
 * random(4), "RNDRESEEDCRNG". date(1) and an interpreter for the ioctl would take an emulated machine four times as long.
 */
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/time.h>

int main(int argc, char **argv)
{
    char *end = NULL;
    double now = argc == 2 ? strtod(argv[1], &end) : 0;
    if (end == NULL || *end != '\0' || !(now > 0 && now < 1e11)) {
        fprintf(stderr, "usage: apart SECONDS\n");
        return 2;
    }
    time_t seconds = (time_t)now;
    struct timeval time = {.tv_sec = seconds, .tv_usec = (suseconds_t)((now - (double)seconds) * 1e6)};
    if (settimeofday(&time, NULL) != 0) {
        perror("settimeofday");
        return 1;
    }
    int random = open("/dev/urandom", O_WRONLY);
    if (random < 0 || ioctl(random, RNDRESEEDCRNG) != 0) {
        perror("RNDRESEEDCRNG");
        return 1;
    }
    return 0;
}
