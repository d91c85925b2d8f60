// Attaches the first program of an object to the TCX ingress of interfaces, until it is killed.
//
//   attach OBJECT INTERFACE..
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TCX_INGRESS 46 // BPF_TCX_INGRESS, of linux/bpf.h since 6.6

int main(int count, char **words)
{
	struct bpf_object *object = count > 2 ? bpf_object__open(words[1]) : NULL;
	struct bpf_program *program = object ? bpf_object__next_program(object, NULL) : NULL;

	if (!program || bpf_program__set_type(program, BPF_PROG_TYPE_SCHED_CLS) || bpf_object__load(object))
		return 1;
	for (int i = 2; i < count; i++) {
		union bpf_attr attr;

		memset(&attr, 0, sizeof(attr));
		attr.link_create.prog_fd = bpf_program__fd(program);
		attr.link_create.target_ifindex = if_nametoindex(words[i]);
		attr.link_create.attach_type = TCX_INGRESS;
		if (syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof(attr)) < 0)
			return 1;
	}
	puts("attached");
	fflush(stdout);
	pause();
	return 0;
}
