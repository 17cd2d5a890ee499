/* canned: what the kernel alone costs, whatever is asked.
 *
 *   canned PORT SERVER [ARGUMENT...]
 *
 * Starts SERVER, which prints where it listens, as http://127.0.0.1:NUMBER/. What a client asks for the first
 * time is passed on to it, and what it answers is kept: from then on it is the answer to the same bytes, and
 * SERVER hears nothing more of it. So this gives SERVER's own answers, to the byte, without a server's work:
 * a request is found by the blank line at its end and looked up as a whole. Nothing in it is read, nothing on
 * the disk is looked at, and no date goes on.
 *
 * One thread, edge-triggered epoll: a request costs one recv, one send and its share of an epoll_wait. A long
 * body lies in a file in memory, in huge pages where the kernel has them, and leaves by sendfile. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE /* since Linux 6.1; the headers of Debian 12's libc are older */
#define MADV_COLLAPSE 25
#endif

enum { SOCKETS_MAX = 1 << 16, KNOWN_MAX = 1 << 16, READ_MAX = 1 << 14, OWED_MAX = 64, EVENTS_MAX = 512 };
enum { COPY_MAX = 1 << 15, HUGE_PAGE = 1 << 21 };

static struct known {
    uint64_t hash;
    char *request, *answer;
    size_t request_length, answer_length;
    int closes; /* the server ends the connection behind it */
    int file; /* has what is behind the head, where that is longer than COPY_MAX; else 0 */
    size_t head_length;
} known[KNOWN_MAX]; /* an open hash table */
static int known_count;

static struct connection {
    const struct known *owed[OWED_MAX]; /* in order */
    int owed_count, closing;
    size_t sent; /* bytes of owed[0] */
    size_t rest_length;
    char rest[READ_MAX]; /* a request whose end has not come yet */
} *connections[SOCKETS_MAX]; /* by descriptor */

static struct sockaddr_in server = {.sin_family = AF_INET};

static pid_t child;

static void stop(int number)
{
    (void)number;
    kill(child, SIGTERM);
    waitpid(child, NULL, 0);
    _exit(0);
}

/* Starts the server and waits until it says where it listens. It ends when this does. */
static void start(char **command)
{
    int said[2];
    if (pipe(said)) err(1, "pipe");
    switch (child = fork()) {
    case -1: err(1, "fork");
    case 0:
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        dup2(said[1], STDOUT_FILENO);
        close(said[0]), close(said[1]);
        execvp(command[0], command);
        err(1, "%s", command[0]);
    }
    close(said[1]);
    FILE *lines = fdopen(said[0], "r");
    int port = 0;
    for (char line[4096]; !port;) {
        if (!fgets(line, sizeof line, lines)) errx(1, "%s has not said where it listens", command[0]);
        sscanf(line, "http://127.0.0.1:%d/", &port);
    }
    server.sin_port = htons(port);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

/* Puts what is behind the head into a file in memory. */
static void file_away(struct known *place)
{
    size_t length = place->answer_length - place->head_length;
    size_t room = (length + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    int file = memfd_create("body", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, room)) err(1, "a file in memory");
    char *body = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (body == MAP_FAILED) err(1, "a file in memory");
    madvise(body, room, MADV_HUGEPAGE);
    memcpy(body, place->answer + place->head_length, length);
    madvise(body, room, MADV_COLLAPSE); /* where they are not such already */
    munmap(body, room);
    place->file = file;
    place->answer = realloc(place->answer, place->head_length);
}

/* Asks the server. The answer is over where its head says so. */
static void learn(struct known *place)
{
    static int socket_ = -1;
    int is_head = !memcmp(place->request, "HEAD ", 5);
    size_t room = 1 << 16, length = 0, whole = 0;
    char next;
    if (socket_ >= 0 && recv(socket_, &next, 1, MSG_PEEK | MSG_DONTWAIT) == 0) {
        close(socket_); /* the server's patience was at an end */
        socket_ = -1;
    }
    if (socket_ < 0) {
        socket_ = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(socket_, (struct sockaddr *)&server, sizeof server)) err(1, "the server");
    }
    if (write(socket_, place->request, place->request_length) < 0) err(1, "the server");
    place->answer = malloc(room);
    while (!whole || length < whole) {
        if (length + 1 >= room) place->answer = realloc(place->answer, room *= 2);
        if (!place->answer) err(1, "an answer");
        ssize_t got = read(socket_, place->answer + length, room - length - 1);
        if (got <= 0) errx(1, "the server has ended an answer too soon");
        place->answer[length += got] = 0;
        char *end = whole ? NULL : memmem(place->answer, length, "\r\n\r\n", 4);
        if (!end) continue;
        char *field = strcasestr(place->answer, "\r\nContent-Length:");
        int has_body = !is_head && memcmp(place->answer + 9, "304", 3) && field && field < end;
        place->head_length = end + 4 - place->answer;
        whole = place->head_length + (has_body ? strtoull(field + 17, NULL, 10) : 0);
        char *closes = strcasestr(place->answer, "\r\nConnection: close");
        place->closes = closes && closes < end;
    }
    place->answer_length = whole;
    place->answer = realloc(place->answer, whole);
    if (whole - place->head_length > COPY_MAX) file_away(place);
    if (place->closes) {
        close(socket_);
        socket_ = -1;
    }
}

static const struct known *find(const char *request, size_t length)
{
    uint64_t hash = length, word;
    for (size_t at = 0; at < length; at += 8) {
        size_t from = at + 8 <= length ? at : length - 8; /* no request is shorter */
        memcpy(&word, request + from, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 32;
    }
    for (struct known *place = known + hash % KNOWN_MAX;; place = known + (place - known + 1) % KNOWN_MAX) {
        if (!place->request) {
            if (++known_count > KNOWN_MAX / 2) errx(1, "too many different requests");
            place->request = malloc(length);
            memcpy(place->request, request, length);
            place->request_length = length;
            place->hash = hash;
            learn(place);
            return place;
        }
        int is_it = place->hash == hash && place->request_length == length;
        if (is_it && !memcmp(place->request, request, length)) return place;
    }
}

/* Owes an answer to each whole request; 0 where there are too many. */
static int take(struct connection *c, const char *at, const char *end)
{
    for (const char *stop; (stop = memmem(at, end - at, "\r\n\r\n", 4)); at = stop + 4) {
        if (c->owed_count == OWED_MAX || c->closing || stop - at < 8) return 0;
        const struct known *answer = c->owed[c->owed_count++] = find(at, stop + 4 - at);
        c->closing = answer->closes;
    }
    memcpy(c->rest, at, c->rest_length = end - at);
    return 1;
}

/* Sends the next of an answer whose body is in a file. */
static ssize_t send_filed(int socket_, const struct known *answer, size_t sent)
{
    if (sent < answer->head_length)
        return send(socket_, answer->answer + sent, answer->head_length - sent, MSG_NOSIGNAL | MSG_MORE);
    off_t at = sent - answer->head_length;
    return sendfile(socket_, answer->file, &at, answer->answer_length - sent);
}

/* Sends the next of as many answers as have none. */
static ssize_t send_whole(int socket_, const struct connection *c)
{
    struct iovec parts[OWED_MAX];
    int count = 0;
    for (size_t sent = c->sent; count < c->owed_count && !c->owed[count]->file; count++, sent = 0)
        parts[count] = (struct iovec){c->owed[count]->answer + sent, c->owed[count]->answer_length - sent};
    return count == 1 ? send(socket_, parts[0].iov_base, parts[0].iov_len, MSG_NOSIGNAL)
                      : writev(socket_, parts, count);
}

/* Sends what is owed: 1 all of it, 0 the socket is full, -1 the connection is lost. */
static int flush(int socket_, struct connection *c)
{
    while (c->owed_count) {
        ssize_t sent = c->owed[0]->file ? send_filed(socket_, c->owed[0], c->sent) : send_whole(socket_, c);
        if (sent < 0) return errno == EAGAIN ? 0 : -1;
        int done = 0;
        for (c->sent += sent; done < c->owed_count && c->sent >= c->owed[done]->answer_length; done++)
            c->sent -= c->owed[done]->answer_length;
        memmove(c->owed, c->owed + done, (c->owed_count -= done) * sizeof *c->owed);
    }
    return 1;
}

/* Until there is nothing to receive or no room to send; 0: to be closed. */
static int serve(int socket_, struct connection *c, int has_ended)
{
    static char buffer[2 * READ_MAX];
    for (int is_drained = 0;;) {
        int flushed = flush(socket_, c);
        if (flushed <= 0) return flushed == 0; /* the room to come is an event too */
        if (c->closing) return 0;
        if (is_drained && !has_ended) return 1;
        memcpy(buffer, c->rest, c->rest_length);
        size_t room = READ_MAX - c->rest_length;
        ssize_t got = recv(socket_, buffer + c->rest_length, room, 0);
        if (got < 0) return errno == EAGAIN;
        if (got == 0 || !take(c, buffer, buffer + c->rest_length + got)) return 0;
        is_drained = (size_t)got < room;
    }
}

int main(int count, char **words)
{
    if (count < 3) errx(2, "usage: canned PORT SERVER [ARGUMENT...]");
    signal(SIGPIPE, SIG_IGN);
    start(words + 2);
    signal(SIGTERM, stop);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, poll = epoll_create1(0);
    struct sockaddr_in here = {AF_INET, htons(atoi(words[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* Accept what has a request already; and the congestion control that costs the least. */
    setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    struct epoll_event event = {EPOLLIN, {.fd = listener}}, events[EVENTS_MAX];
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096) ||
        epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event))
        err(1, "port %s", words[1]);
    for (;;) {
        int ready = epoll_wait(poll, events, EVENTS_MAX, -1);
        for (int i = 0; i < ready; i++) {
            int socket_ = events[i].data.fd;
            if (socket_ != listener) {
                int has_ended = events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
                if (!serve(socket_, connections[socket_], has_ended))
                    free(connections[socket_]), close(socket_);
                continue;
            }
            while ((socket_ = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (socket_ >= SOCKETS_MAX || !(connections[socket_] = calloc(1, sizeof **connections)))
                    errx(1, "too many connections");
                if (!serve(socket_, connections[socket_], 0)) {
                    free(connections[socket_]), close(socket_);
                    continue;
                }
                event = (struct epoll_event){EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.fd = socket_}};
                epoll_ctl(poll, EPOLL_CTL_ADD, socket_, &event);
            }
        }
    }
}
