/* The smallest reader of a queue: it accepts every packet, with one system call to read it and one for
 * the verdict, as in the examples of libnetfilter_queue.
 *
 *   accept QUEUE
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <linux/netfilter.h>
#include <libnetfilter_queue/libnetfilter_queue.h>

static char buffer[128 * 1024] __attribute__((aligned));

static int accept_it(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data,
		     void *unused)
{
	struct nfqnl_msg_packet_hdr *header = nfq_get_msg_packet_hdr(data);

	(void)message;
	(void)unused;
	return header ? nfq_set_verdict(queue, ntohl(header->packet_id), NF_ACCEPT, 0, NULL) : -1;
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	struct nfq_handle *handle = nfq_open();
	struct nfq_q_handle *queue;

	if (argc != 2) {
		fprintf(stderr, "usage: accept QUEUE\n");
		return 2;
	}
	if (!handle)
		return fail("nfq_open");
	queue = nfq_create_queue(handle, atoi(argv[1]), accept_it, NULL);
	if (!queue)
		return fail("nfq_create_queue");
	/* Whole packets, because a gateway has to read their payload. */
	if (nfq_set_mode(queue, NFQNL_COPY_PACKET, 0xffff) < 0)
		return fail("nfq_set_mode");
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t length = recv(nfq_fd(handle), buffer, sizeof buffer, 0);

		if (length > 0)
			nfq_handle_packet(handle, buffer, (int)length);
		else if (length < 0 && errno != ENOBUFS && errno != EINTR)
			return fail("recv");
	}
}
