// An FTP server and a load for it.
//
//   traffic serve ADDRESS                            on port 21, until it is ended
//   traffic load ADDRESS pasv|epsv|port WORKERS SECONDS LOCAL [PID..]
//
// The latter prints transfer cycles a second, microseconds of processor that a cycle takes of this process and of
// those named, and errors. What the gateway does for a packet is done on its sender's time, so the second figure
// has it all, and does not mind what else the machine is busy with.
#include <arpa/inet.h>
#include <linux/types.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LISTENERS 16 // of one session, announced in turn
#define FILE_LENGTH 64
#define PATIENCE_MS 5000

struct lines {
	int fd;
	size_t length;
	char bytes[4096];
};

static struct sockaddr_in server = { .sin_family = AF_INET }, local = { .sin_family = AF_INET };
static const char *verb;
static atomic_ulong cycles, errors;
static atomic_int counting, over;

static int listener(in_addr_t address, __u16 *port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = address };
	socklen_t length = sizeof(at);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 64) ||
	    getsockname(fd, (struct sockaddr *)&at, &length))
		return -1;
	*port = ntohs(at.sin_port);
	return fd;
}

static int connect_to(in_addr_t address, __u16 port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = address, .sin_port = htons(port) };
	struct timeval patience = { .tv_sec = PATIENCE_MS / 1000 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (!connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return fd;
	close(fd);
	return -1;
}

static int accept_soon(int fd)
{
	struct pollfd wait = { .fd = fd, .events = POLLIN };

	return poll(&wait, 1, PATIENCE_MS) == 1 ? accept(fd, NULL, NULL) : -1;
}

// The next line, without its end. The rest is stored. `line` has room for all of it.
static int read_line(struct lines *from, char *line)
{
	for (;;) {
		char *end = memchr(from->bytes, '\n', from->length);
		ssize_t got;

		if (end) {
			size_t length = end - from->bytes + 1;

			memcpy(line, from->bytes, length);
			line[length - (length > 1 && end[-1] == '\r' ? 2 : 1)] = 0;
			from->length -= length;
			memmove(from->bytes, end + 1, from->length);
			return 1;
		}
		got = recv(from->fd, from->bytes + from->length, sizeof(from->bytes) - from->length, 0);
		if (got <= 0)
			return 0;
		from->length += got;
	}
}

static void say(int fd, const char *format, const char *text)
{
	char line[256];
	int length = snprintf(line, sizeof(line), format, text);

	send(fd, line, length, MSG_NOSIGNAL);
}

static void host_port(char *text, in_addr_t address, __u16 port)
{
	const __u8 *a = (const __u8 *)&address;

	sprintf(text, "%u,%u,%u,%u,%u,%u", a[0], a[1], a[2], a[3], port >> 8, port & 255);
}

static int read_host_port(const char *text, in_addr_t *address, __u16 *port)
{
	unsigned n[6];

	if (sscanf(text, "%u,%u,%u,%u,%u,%u", n, n + 1, n + 2, n + 3, n + 4, n + 5) != 6)
		return 0;
	*address = htonl(n[0] << 24 | n[1] << 16 | n[2] << 8 | n[3]);
	*port = n[4] << 8 | n[5];
	return 1;
}

static void *serve(void *argument)
{
	struct lines from = { .fd = (int)(long)argument };
	int listeners[LISTENERS], current = -1, turn = 0, one = 1;
	in_addr_t active_address = 0;
	__u16 ports[LISTENERS], active_port = 0;
	char line[4096], text[64], file[FILE_LENGTH] = { 0 };

	setsockopt(from.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (int i = 0; i < LISTENERS; i++)
		listeners[i] = listener(server.sin_addr.s_addr, &ports[i]);
	say(from.fd, "220 ready\r\n", "");
	while (read_line(&from, line)) {
		if (!strncasecmp(line, "USER", 4)) {
			say(from.fd, "331 password\r\n", "");
		} else if (!strncasecmp(line, "PASS", 4)) {
			say(from.fd, "230 welcome\r\n", "");
		} else if (!strcasecmp(line, "PASV")) {
			current = turn++ % LISTENERS;
			host_port(text, server.sin_addr.s_addr, ports[current]);
			say(from.fd, "227 Entering Passive Mode (%s).\r\n", text);
		} else if (!strcasecmp(line, "EPSV")) {
			current = turn++ % LISTENERS;
			sprintf(text, "%u", ports[current]);
			say(from.fd, "229 Entering Extended Passive Mode (|||%s|)\r\n", text);
		} else if (!strncasecmp(line, "PORT ", 5) && read_host_port(line + 5, &active_address, &active_port)) {
			current = -1;
			say(from.fd, "200 ok\r\n", "");
		} else if (!strncasecmp(line, "RETR", 4)) {
			int data;

			say(from.fd, "150 here it comes\r\n", "");
			data = current < 0 ? connect_to(active_address, active_port) : accept_soon(listeners[current]);
			if (data >= 0) {
				send(data, file, sizeof(file), MSG_NOSIGNAL);
				close(data);
			}
			say(from.fd, data < 0 ? "425 no connection\r\n" : "226 done\r\n", "");
		} else {
			say(from.fd, strcasecmp(line, "QUIT") ? "502 no\r\n" : "221 bye\r\n", "");
		}
	}
	for (int i = 0; i < LISTENERS; i++)
		close(listeners[i]);
	close(from.fd);
	return NULL;
}

static int expect(struct lines *from, const char *code, char *line)
{
	return read_line(from, line) && !strncmp(line, code, 3);
}

// One transfer over a control connection that is logged in.
static int cycle(struct lines *control, int *listeners, __u16 *ports, unsigned turn)
{
	char line[4096], text[64], file[FILE_LENGTH];
	in_addr_t address = server.sin_addr.s_addr;
	ssize_t got, length = 0;
	__u16 port = 0;
	int data = -1;

	if (!strcmp(verb, "pasv")) {
		say(control->fd, "PASV\r\n", "");
		if (!expect(control, "227", line) || !strchr(line, '(') ||
		    !read_host_port(strchr(line, '(') + 1, &address, &port))
			return 0;
	} else if (!strcmp(verb, "epsv")) {
		say(control->fd, "EPSV\r\n", "");
		if (!expect(control, "229", line) || !strstr(line, "|||"))
			return 0;
		port = atoi(strstr(line, "|||") + 3);
	} else {
		host_port(text, local.sin_addr.s_addr, ports[turn % LISTENERS]);
		say(control->fd, "PORT %s\r\n", text);
		if (!expect(control, "200", line))
			return 0;
	}
	if (port && (data = connect_to(address, port)) < 0)
		return 0;
	say(control->fd, "RETR file\r\n", "");
	if (!expect(control, "150", line))
		return 0;
	if (data < 0 && (data = accept_soon(listeners[turn % LISTENERS])) < 0)
		return 0;
	while ((got = recv(data, file, sizeof(file), 0)) > 0)
		length += got;
	close(data);
	return expect(control, "226", line) && length == FILE_LENGTH;
}

static void *worker(void *argument)
{
	struct lines control = { .fd = connect_to(server.sin_addr.s_addr, 21) };
	int listeners[LISTENERS];
	__u16 ports[LISTENERS];
	char line[4096];

	for (int i = 0; i < LISTENERS; i++)
		listeners[i] = listener(local.sin_addr.s_addr, &ports[i]);
	if (control.fd < 0 || !expect(&control, "220", line))
		goto failed;
	say(control.fd, "USER x\r\n", "");
	if (!expect(&control, "331", line))
		goto failed;
	say(control.fd, "PASS x\r\n", "");
	if (!expect(&control, "230", line))
		goto failed;
	for (unsigned turn = 0; !over; turn++) {
		if (!cycle(&control, listeners, ports, turn))
			goto failed;
		if (counting)
			cycles++;
	}
	close(control.fd);
	return NULL;
failed:
	errors++;
	return NULL;
}

// Nanoseconds of processor, of this process and of those named.
static double used(int count, char **pids)
{
	struct timespec spent;
	clockid_t clock;
	double sum;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
	sum = spent.tv_sec * 1e9 + spent.tv_nsec;
	for (int i = 0; i < count; i++)
		if (!clock_getcpuclockid(atoi(pids[i]), &clock) && !clock_gettime(clock, &spent))
			sum += spent.tv_sec * 1e9 + spent.tv_nsec;
	return sum;
}

int main(int count, char **argument)
{
	pthread_t thread;

	if (count < 3 || !inet_aton(argument[2], &server.sin_addr))
		return 2;
	if (!strcmp(argument[1], "serve")) {
		int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

		server.sin_port = htons(21);
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, (struct sockaddr *)&server, sizeof(server)) || listen(fd, 64))
			return perror("traffic"), 1;
		for (;;) {
			int control = accept(fd, NULL, NULL);

			if (control >= 0 && !pthread_create(&thread, NULL, serve, (void *)(long)control))
				pthread_detach(thread);
		}
	}
	if (count < 7)
		return 2;
	verb = argument[3];
	int workers = atoi(argument[4]), seconds = atoi(argument[5]);
	pthread_t threads[workers];

	inet_aton(argument[6], &local.sin_addr);
	for (int i = 0; i < workers; i++)
		pthread_create(&threads[i], NULL, worker, NULL);
	usleep(300000);
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	double before = used(count - 7, argument + 7);
	counting = 1;
	sleep(seconds);
	counting = 0;
	double spent = used(count - 7, argument + 7) - before;
	clock_gettime(CLOCK_MONOTONIC, &to);
	over = 1;
	for (int i = 0; i < workers; i++)
		pthread_join(threads[i], NULL);
	printf("%.0f %.2f %lu\n", cycles / ((to.tv_sec - from.tv_sec) + (to.tv_nsec - from.tv_nsec) / 1e9),
	       spent / 1e3 / (cycles ? cycles : 1), (unsigned long)errors);
	return errors ? 1 : 0;
}
