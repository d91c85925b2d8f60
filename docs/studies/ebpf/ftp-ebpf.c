// Loads the programs, tells what they counted, and runs them over captures.
//
//   ftp-ebpf load OBJECT DIR         load, and pin programs and maps in DIR (a bpffs)
//   ftp-ebpf tcx OBJECT DIR IFNAME..  the same, at the ingress of these interfaces
//   ftp-ebpf counters DIR            what they counted, and the pinholes that are open
//   ftp-ebpf cost DIR                nanoseconds and runs of each program, while kernel.bpf_stats_enabled is 1
//   ftp-ebpf replay OBJECT CAPTURE   what `control` opens, of each TCP packet of a classic pcap, by BPF_PROG_TEST_RUN
//   ftp-ebpf limits OBJECT           load each program by itself, and say what the verifier said
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Newer than Debian 12's libbpf.
#define PROG_TYPE_NETFILTER 32
#define ATTACH_NETFILTER 45
#define ATTACH_TCX_INGRESS 46

static const char *names[] = { "packets", "opened", "handed over", "queued", "admitted", "collisions" };
#define COUNTERS (sizeof(names) / sizeof(names[0]))

struct address {
	__u32 word[4];
};
struct hole_key {
	struct address from, to;
	__u16 port, zero;
};

static char verifier[4 << 20];

static void fail(const char *what)
{
	fprintf(stderr, "ftp-ebpf: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return 0;
}

static void set_type(struct bpf_program *program)
{
	const char *section = bpf_program__section_name(program);

	if (!strncmp(section, "nf/", 3)) {
		bpf_program__set_type(program, PROG_TYPE_NETFILTER);
		bpf_program__set_expected_attach_type(program, ATTACH_NETFILTER);
	} else if (!strncmp(section, "sf/", 3)) {
		bpf_program__set_type(program, BPF_PROG_TYPE_SOCKET_FILTER);
	} else if (!strncmp(section, "tc/", 3)) {
		bpf_program__set_type(program, BPF_PROG_TYPE_SCHED_CLS);
	}
}

static struct bpf_object *load(const char *path)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program;

	if (!object)
		fail(path);
	bpf_object__for_each_program(program, object) {
		set_type(program);
		bpf_program__set_log_buf(program, verifier, sizeof(verifier));
		bpf_program__set_log_level(program, 4);
	}
	if (bpf_object__load(object)) {
		size_t length = strlen(verifier);
		fprintf(stderr, "%s", length > 3000 ? verifier + length - 3000 : verifier);
		fail("the kernel does not take the program");
	}
	return object;
}

static void pin(struct bpf_object *object, const char *directory)
{
	if (bpf_object__pin(object, directory))
		fail(directory);
}

// libbpf learned of TCX later than Debian 12's.
static void attach(int program, const char *interface, const char *directory)
{
	union bpf_attr attribute = {};
	char path[512];
	int link;

	attribute.link_create.prog_fd = program;
	attribute.link_create.target_ifindex = if_nametoindex(interface);
	attribute.link_create.attach_type = ATTACH_TCX_INGRESS;
	link = syscall(SYS_bpf, BPF_LINK_CREATE, &attribute, sizeof(attribute));
	snprintf(path, sizeof(path), "%s/link_%s", directory, interface);
	if (link < 0 || bpf_obj_pin(link, path))
		fail(interface);
}

static int pinned(const char *directory, const char *name)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = bpf_obj_get(path);
	if (fd < 0)
		fail(path);
	return fd;
}

static __u64 counter(int map, __u32 which)
{
	int processors = libbpf_num_possible_cpus();
	__u64 values[processors], sum = 0;

	if (bpf_map_lookup_elem(map, &which, values))
		fail("counters");
	for (int i = 0; i < processors; i++)
		sum += values[i];
	return sum;
}

static void print_address(const struct address *a)
{
	char text[INET6_ADDRSTRLEN];
	int is_v4 = !a->word[0] && !a->word[1] && a->word[2] == htonl(0xffff);

	inet_ntop(is_v4 ? AF_INET : AF_INET6, is_v4 ? &a->word[3] : &a->word[0], text, sizeof(text));
	printf(is_v4 ? "%s" : "[%s]", text);
}

// Prints the pinholes, each after `lead`; takes them away if `take`.
static void print_holes(int map, const char *lead, int take)
{
	struct hole_key key, next, *at = NULL;

	while (!bpf_map_get_next_key(map, at, &next)) {
		printf("%s", lead);
		print_address(&next.from);
		printf(" -> ");
		print_address(&next.to);
		printf(":%u\n", ntohs(next.port));
		if (take) {
			bpf_map_delete_elem(map, &next);
			continue;
		}
		key = next;
		at = &key;
	}
}

static void print_cost(const char *directory)
{
	static const char *programs[] = { "control", "admit", "mark" };

	for (int i = 0; i < 3; i++) {
		struct bpf_prog_info info = {};
		__u32 length = sizeof(info);
		char path[512];
		int fd;

		snprintf(path, sizeof(path), "%s/%s", directory, programs[i]);
		fd = bpf_obj_get(path);
		if (fd < 0)
			continue;
		if (bpf_obj_get_info_by_fd(fd, &info, &length))
			fail(path);
		printf("%-8s %10llu runs %8.0f ns each, %u bytes of machine code, %u verified instructions\n", programs[i],
		       (unsigned long long)info.run_cnt, info.run_cnt ? (double)info.run_time_ns / info.run_cnt : 0.0,
		       info.jited_prog_len, info.verified_insns);
		close(fd);
	}
}

static void replay(struct bpf_object *object, const char *path)
{
	int control = bpf_program__fd(bpf_object__find_program_by_name(object, "control"));
	int holes = bpf_object__find_map_fd_by_name(object, "holes");
	int counted = bpf_object__find_map_fd_by_name(object, "counters");
	FILE *file = fopen(path, "rb");
	__u32 header[6], record[4], frame = 0;
	static __u8 packet[1 << 18];
	int link;

	if (!file || fread(header, sizeof(header), 1, file) != 1 || (header[0] != 0xa1b2c3d4 && header[0] != 0xa1b23c4d))
		fail(path);
	link = header[5] & 0xffff; // 1: Ethernet, 101: IP
	while (fread(record, sizeof(record), 1, file) == 1 && record[2] < sizeof(packet) - 14) {
		__u8 *data = link == 1 ? packet : packet + 14;
		LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = packet);
		char lead[32];

		if (fread(data, 1, record[2], file) != record[2])
			break;
		frame++;
		run.data_size_in = record[2] + (link == 1 ? 0 : 14);
		if (link != 1) {
			memset(packet, 0, 12);
			packet[12] = data[0] >> 4 == 4 ? 0x08 : 0x86;
			packet[13] = data[0] >> 4 == 4 ? 0x00 : 0xdd;
		}
		// TCP from or to port 21 only, as the rules select.
		__u8 *ip = packet + 14, *tcp = ip + (ip[0] >> 4 == 4 ? (ip[0] & 15) * 4 : 40);
		if (ip[ip[0] >> 4 == 4 ? 9 : 6] != 6 ||
		    ((tcp[0] << 8 | tcp[1]) != 21 && (tcp[2] << 8 | tcp[3]) != 21))
			continue;
		if (bpf_prog_test_run_opts(control, &run))
			fail("test run");
		snprintf(lead, sizeof(lead), "%u ", frame);
		print_holes(holes, lead, 1);
	}
	fprintf(stderr, "%llu packets with payload, FIN or RST, %llu opened, %llu connections handed over, %llu packets queued\n",
		(unsigned long long)counter(counted, 0), (unsigned long long)counter(counted, 1),
		(unsigned long long)counter(counted, 2), (unsigned long long)counter(counted, 3));
}

// Runs a program of the netfilter hook once on an empty IPv4 packet; gives its verdict.
static int try_out(int fd)
{
	__u8 packet[64] = { [12] = 8, [14] = 0x45, [17] = 50, [22] = 64, [23] = 17 };
	LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = packet, .data_size_in = sizeof(packet));

	return bpf_prog_test_run_opts(fd, &run) ? -1 : (int)run.retval;
}

static void limits(const char *path)
{
	for (int which = 0;; which++) {
		struct bpf_object *object = bpf_object__open_file(path, NULL);
		struct bpf_program *program, *chosen = NULL;
		int at = 0;

		if (!object)
			fail(path);
		bpf_object__for_each_program(program, object) {
			set_type(program);
			bpf_program__set_autoload(program, at == which);
			if (at++ == which)
				chosen = program;
		}
		if (!chosen)
			return;
		verifier[0] = 0;
		bpf_program__set_log_buf(chosen, verifier, sizeof(verifier));
		bpf_program__set_log_level(chosen, 1);
		printf("%-24s ", bpf_program__section_name(chosen));
		if (!bpf_object__load(object)) {
			int verdict = try_out(bpf_program__fd(chosen));
			printf("taken; run once it gives %d\n", verdict);
		} else {
			// The verifier's reason is the line before its statistics.
			char *end = strstr(verifier, "processed "), *start = end;
			if (end && end > verifier)
				*--end = 0;
			start = strrchr(verifier, '\n');
			printf("refused: %s\n", start ? start + 1 : verifier);
		}
		bpf_object__close(object);
	}
}

int main(int count, char **argument)
{
	const char *what = count > 2 ? argument[1] : "";
	struct bpf_object *object;

	libbpf_set_print(quiet);
	if (!strcmp(what, "load") && count == 4) {
		pin(load(argument[2]), argument[3]);
	} else if (!strcmp(what, "tcx") && count > 4) {
		object = load(argument[2]);
		pin(object, argument[3]);
		for (int i = 4; i < count; i++)
			attach(bpf_program__fd(bpf_object__find_program_by_name(object, "mark")), argument[i], argument[3]);
	} else if (!strcmp(what, "counters")) {
		int map = pinned(argument[2], "counters");
		for (__u32 i = 0; i < COUNTERS; i++)
			printf("%s %llu\n", names[i], (unsigned long long)counter(map, i));
		print_holes(pinned(argument[2], "holes"), "open ", 0);
	} else if (!strcmp(what, "cost")) {
		print_cost(argument[2]);
	} else if (!strcmp(what, "replay") && count == 4) {
		replay(load(argument[2]), argument[3]);
	} else if (!strcmp(what, "limits")) {
		limits(argument[2]);
	} else {
		fprintf(stderr, "usage: see the head of ftp-ebpf.c\n");
		return 2;
	}
	return 0;
}
