// Sends one frame of 64 bytes (from the IP header on) over and over, without a queueing discipline; or once.
//
//   flood INTERFACE GATEWAY-MAC udp|tcp SOURCE DESTINATION SPORT DPORT [FLAGS [once]]
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SIZE (ETH_HLEN + 64)
#define BATCH 64

static unsigned short checksum(const void *data, int length, unsigned sum)
{
	for (const unsigned short *word = data; length > 0; length -= 2)
		sum += *word++;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static void fill(unsigned char *frame, char **words, int count)
{
	struct iphdr *ip = (void *)(frame + ETH_HLEN);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct udphdr *udp = (void *)(ip + 1);
	unsigned mac[6];

	sscanf(words[2], "%x:%x:%x:%x:%x:%x", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5);
	for (int i = 0; i < 6; i++)
		frame[i] = mac[i];
	frame[6] = 2;
	frame[12] = ETHERTYPE_IP >> 8;
	*ip = (struct iphdr){ .version = 4, .ihl = 5, .tot_len = htons(64), .frag_off = htons(0x4000), .ttl = 64 };
	ip->saddr = inet_addr(words[4]);
	ip->daddr = inet_addr(words[5]);
	tcp->source = htons(atoi(words[6])); // where UDP has it
	tcp->dest = htons(atoi(words[7]));
	if (!strcmp(words[3], "udp")) {
		ip->protocol = IPPROTO_UDP;
		udp->len = htons(44); // and no checksum
	} else {
		unsigned pseudo = htons(IPPROTO_TCP) + htons(44);

		ip->protocol = IPPROTO_TCP;
		tcp->doff = 5;
		tcp->window = 0xffff;
		tcp->seq = tcp->ack_seq = htonl(1);
		frame[ETH_HLEN + 33] = count > 8 ? atoi(words[8]) : TH_ACK;
		for (int i = 0; i < 4; i++)
			pseudo += ((unsigned short *)&ip->saddr)[i];
		tcp->check = checksum(tcp, 44, pseudo);
	}
	ip->check = checksum(ip, sizeof(*ip), 0);
}

int main(int count, char **words)
{
	unsigned char frame[SIZE] = {0};
	struct iovec piece = { frame, SIZE };
	struct mmsghdr batch[BATCH] = {0};
	struct sockaddr_ll to = { .sll_family = AF_PACKET };
	int socket_, on = 1;
	cpu_set_t first;

	if (count < 8)
		return 2;
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	sched_setaffinity(0, sizeof(first), &first);
	fill(frame, words, count);
	to.sll_ifindex = if_nametoindex(words[1]);
	socket_ = socket(AF_PACKET, SOCK_RAW, 0);
	setsockopt(socket_, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
	if (bind(socket_, (void *)&to, sizeof(to)))
		return 1;
	if (count > 9)
		return send(socket_, frame, SIZE, 0) != SIZE;
	for (int i = 0; i < BATCH; i++)
		batch[i].msg_hdr = (struct msghdr){ .msg_iov = &piece, .msg_iovlen = 1 };
	while (sendmmsg(socket_, batch, BATCH, 0) > 0)
		;
	return 1;
}
