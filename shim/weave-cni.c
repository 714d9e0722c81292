/* The CNI executable of weavenet, installed under two names: weave-net and weave-ipam.
 *
 * A container runtime starts it for every verb on every pod, on nodes that may have no Python, so it is static C and
 * decides nothing. It carries the call to the agent, and the agent's answer back:
 *
 *     runtime --(environment, stdin)--> this --(Unix socket)--> agent --> this --(stdout, exit status)--> runtime
 *
 * It opens CNI_NETNS itself and passes the descriptor (unix(7), SCM_RIGHTS), so that the agent, which lives in a
 * container, needs no view of the host's namespace paths. Request and answer, all numbers 32 bits and big-endian:
 *
 *     | "WCNI" | 1 | errno of opening CNI_NETNS, or 0 | length of strings | length of stdin | strings | stdin |
 *     | "WCNI" | 1 | exit status | length of stdout | stdout |
 *
 * Strings are the name we were called by and the environment's CNI_*=..., each with its NUL. The descriptor rides on
 * the first byte. We keep our sending side open until the answer is here: when the runtime kills us, the agent sees the
 * end of the stream and undoes what it began.
 *
 * Only three things it says by itself: VERSION, which works with the agent away; that the agent is away (error 11, "try
 * again later", or to STATUS 50, "not available"); and that its input cannot be read or is too large to carry.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef TIME_LIMIT_S
#define TIME_LIMIT_S 120 /* for everything; longer than the agent's own limit, whose answer says more */
#endif
#define BODY_MAX (1 << 20) /* of stdin, and of the answer */
#define DEFAULT_SOCKET "/run/weavenet/cni.sock"
#define VERSION_ANSWER \
    "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}"

/* Error codes of the CNI specification, section "Error". */
enum { INVALID_ENVIRONMENT = 4, IO_FAILURE = 5, INVALID_CONFIG = 7, TRY_AGAIN_LATER = 11, NOT_AVAILABLE = 50 };

static char strings[64 << 10], body[BODY_MAX + 1];
static const char *command, *socket_path;
static volatile sig_atomic_t expired;

static void expire(int number) { (void)number, expired = 1; }

static void print_escaped(const char *text)
{
    for (; *text; text++)
        printf(*text == '"' || *text == '\\' || (unsigned char)*text < 0x20 ? "\\u%04x" : "%c", *text);
}

/* Answer with a CNI error, and end. */
static _Noreturn void refuse(int code, const char *what, const char *why, const char *details)
{
    printf("{\"code\":%d,\"msg\":\"", code);
    print_escaped(what);
    print_escaped(why);
    printf("\",\"details\":\"");
    print_escaped(details);
    puts("\"}");
    exit(1);
}

static const char *reason(void) { return expired ? "timed out" : strerror(errno); }

static _Noreturn void agent_is_away(const char *why)
{
    char what[512];
    snprintf(what, sizeof what, "the weavenet agent does not answer on %s: ", socket_path);
    refuse(strcmp(command, "STATUS") ? TRY_AGAIN_LATER : NOT_AVAILABLE, what, why,
           "Is it running on this node? In Kubernetes: kubectl get pods -n kube-system -l name=weave-net -o wide, and the"
           " logs of the pod on this node; on a plain host: weave launch. Nothing needs cleaning up, the call will work"
           " once the agent does. $WEAVENET_CNI_SOCKET names another socket.");
}

/* Read until `length` bytes are there or the stream ends: how many there are, or -1. */
static ssize_t read_all(int from, char *into, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = read(from, into + done, length - done);
        if (n == 0)
            break;
        if (n > 0)
            done += n;
        else if (errno != EINTR || expired)
            return -1;
    }
    return done;
}

static int write_all(int to, const char *from, size_t length)
{
    while (length) {
        ssize_t n = write(to, from, length);
        if (n > 0)
            from += n, length -= n;
        else if (errno != EINTR || expired)
            return -1;
    }
    return 0;
}

static size_t append_string(size_t used, const char *text)
{
    size_t length = strlen(text) + 1;
    if (length > sizeof strings - used)
        refuse(INVALID_ENVIRONMENT, "the CNI_* variables are longer than 64 KiB", "", "");
    memcpy(strings + used, text, length);
    return used + length;
}

/* Send the first part of the request, with the namespace's descriptor if there is one (-1 if not). */
static int send_header(int agent, const uint32_t header[5], int netns)
{
    union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct iovec data = {(void *)header, 5 * sizeof *header};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (netns >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        *rights = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof netns), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(rights), &netns, sizeof netns);
    }
    return sendmsg(agent, &message, 0) == (ssize_t)data.iov_len ? 0 : -1;
}

static int connect_to_agent(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof address.sun_path)
        agent_is_away("the path is longer than a socket's may be");
    strcpy(address.sun_path, socket_path);
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0 || connect(agent, (struct sockaddr *)&address, sizeof address))
        agent_is_away(reason());
    return agent;
}

/* Wait for the answer and pass it on: our exit status. */
static int pass_answer_on(int agent, uint32_t magic)
{
    uint32_t header[4];
    ssize_t got = read_all(agent, (char *)header, sizeof header);
    if (got == sizeof header) {
        size_t length = ntohl(header[3]);
        if (header[0] != magic || ntohl(header[1]) != 1 || length > BODY_MAX)
            agent_is_away("it speaks another version; install this executable anew from the agent's image");
        got = read_all(agent, body, length);
        if (got == (ssize_t)length)
            return write_all(STDOUT_FILENO, body, length) ? 1 : (int)ntohl(header[2]);
    }
    agent_is_away(got < 0 ? reason() : "it closed the connection before it had answered");
}

int main(int argc, char **argv)
{
    const char *name = argc && argv[0] ? argv[0] : "", *path = getenv("CNI_NETNS");
    name = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
    command = getenv("CNI_COMMAND") ? getenv("CNI_COMMAND") : "";
    socket_path = getenv("WEAVENET_CNI_SOCKET") ? getenv("WEAVENET_CNI_SOCKET") : DEFAULT_SOCKET;
    if (!strcmp(command, "VERSION"))
        return puts(VERSION_ANSWER) < 0 || fflush(stdout);

    /* One clock for every wait below. It ticks on, in case the first tick falls between two of them. */
    struct itimerval limit = {.it_value.tv_sec = TIME_LIMIT_S, .it_interval.tv_sec = 1};
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = expire}, NULL);
    signal(SIGPIPE, SIG_IGN);
    setitimer(ITIMER_REAL, &limit, NULL);

    size_t strings_length = append_string(0, name);
    for (char **variable = environ; *variable; variable++)
        if (!strncmp(*variable, "CNI_", 4))
            strings_length = append_string(strings_length, *variable);
    ssize_t stdin_length = read_all(STDIN_FILENO, body, sizeof body);
    if (stdin_length < 0)
        refuse(IO_FAILURE, "cannot read the network configuration on stdin: ", reason(), "");
    if (stdin_length > BODY_MAX)
        refuse(INVALID_CONFIG, "the network configuration on stdin is larger than 1 MiB", "", "");

    int wanted = path && *path, netns = wanted ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    int problem = wanted && netns < 0 ? errno : 0, agent = connect_to_agent();
    uint32_t magic, header[5] = {0, htonl(1), htonl(problem), htonl(strings_length), htonl(stdin_length)};
    memcpy(&magic, "WCNI", sizeof magic);
    header[0] = magic;
    if (send_header(agent, header, netns) || write_all(agent, strings, strings_length) ||
        write_all(agent, body, stdin_length))
        agent_is_away(reason());
    return pass_answer_on(agent, magic);
}
