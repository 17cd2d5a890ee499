/* Clients that cost as little as can be, so that the server is what limits.
 *
 *   client PORT CONNECTIONS SECONDS FILE
 *
 * Each connection has one request under way. FILE holds, in this machine's byte order: how many requests there
 * are (32 bits), then for each its length, the length of its answer (32 bits each), and its bytes. Which is
 * sent next is drawn at random. An answer is known by its length alone: whoever starts this has looked at the
 * answers before. Bytes of long answers are thrown away in the kernel.
 *
 * Prints how many answers came, and in how many seconds. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { REQUESTS_MAX = 65536, SOCKETS_MAX = 65536, COPIED_MAX = 4096 };

static struct request { uint32_t length, answer; const char *bytes; } requests[REQUESTS_MAX];
static uint32_t count;
static uint32_t left[SOCKETS_MAX]; /* bytes of its answer still to come, by descriptor */

static void fail(const char *what) {
    fprintf(stderr, "client: %s\n", what);
    exit(1);
}

static void read_requests(const char *path) {
    int file = open(path, O_RDONLY);
    struct stat stat;
    if (file < 0 || fstat(file, &stat)) fail("cannot read the requests");
    const char *at = mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (at == MAP_FAILED) fail("cannot map the requests");
    memcpy(&count, at, 4);
    at += 4;
    if (count == 0 || count > REQUESTS_MAX) fail("too few or too many requests");
    for (uint32_t i = 0; i < count; i++) {
        memcpy(&requests[i].length, at, 4);
        memcpy(&requests[i].answer, at + 4, 4);
        requests[i].bytes = at + 8;
        at += 8 + requests[i].length;
    }
}

static void ask(int socket) {
    static uint64_t random = 88172645463325252;
    random ^= random << 13, random ^= random >> 7, random ^= random << 17; /* xorshift64 */
    const struct request *next = &requests[count == 1 ? 0 : (random >> 11) % count];
    left[socket] = next->answer;
    if (write(socket, next->bytes, next->length) != next->length) fail("a request was not taken whole");
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    static char buffer[1 << 20];
    if (argc != 5) fail("usage: client PORT CONNECTIONS SECONDS FILE");
    read_requests(argv[4]);
    struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int poll = epoll_create1(0), on = 1;
    for (int i = 0; i < atoi(argv[2]); i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        if (client < 0 || client >= SOCKETS_MAX) fail("too many connections");
        if (connect(client, (struct sockaddr *)&server, sizeof server)) fail("cannot connect");
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(client, F_SETFL, O_NONBLOCK);
        struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.fd = client };
        epoll_ctl(poll, EPOLL_CTL_ADD, client, &event);
        ask(client);
    }
    double begin = now(), end = begin + atof(argv[3]), time;
    unsigned long answers = 0;
    while ((time = now()) < end) {
        struct epoll_event events[256];
        int ready = epoll_wait(poll, events, 256, 10000);
        if (ready <= 0) fail("no answer for 10 seconds");
        for (int i = 0; i < ready; i++) {
            int client = events[i].data.fd;
            for (;;) {
                size_t wanted = left[client] < sizeof buffer ? left[client] : sizeof buffer;
                ssize_t got = recv(client, buffer, wanted, wanted > COPIED_MAX ? MSG_TRUNC : 0);
                if (got < 0 && errno == EAGAIN) break;
                if (got <= 0) fail("a connection was closed");
                left[client] -= got;
                if (left[client] == 0) {
                    answers++;
                    ask(client);
                    break;
                }
            }
        }
    }
    printf("%lu %.6f\n", answers, time - begin);
}
