# Makes `root`, a copy of this machine that only this process sees (an overlay in a mount namespace), with a network
# namespace of its own, and without init. What the machine has of ftp-alg is first taken out of that copy. To be read by
# a script that runs with
#
#   unshare --mount --net --pid --fork SCRIPT PACKAGE DIRECTORY     (an empty directory)
#
# shellcheck shell=sh
set -eu
package=$1
cd "$2"

mount --make-rprivate /
mount -t tmpfs tmpfs .
cd "$2"
mkdir clean clean-work before upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=clean,workdir=clean-work root
dpkg-deb --fsys-tarfile "$package" | tar -t | sort -r | while read -r file; do
    case $file in
    */) rmdir "root/$file" 2>/dev/null || : ;;
    *) rm -f "root/$file" ;;
    esac
done
find root/etc/systemd root/var/lib/systemd -name '*ftp-alg.service*' -delete
rm -rf root/var/lib/ftp-alg root/etc/ftp-alg.toml* root/etc/sysctl.d/ftp-alg-setup.conf root/var/lib/dpkg/info/ftp-alg.*
# The paragraph of the package, if it is installed.
sed -i '/^Package: ftp-alg$/,/^$/d' root/var/lib/dpkg/status
sed -i '/^ftp-alg:/d' root/etc/passwd root/etc/group root/etc/shadow root/etc/gshadow
umount root
mount -t overlay overlay -o lowerdir=clean:/ before
mount -t overlay overlay -o lowerdir=clean:/,upperdir=upper,workdir=work root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount --rbind /sys root/sys
# A purge removes the pins that it sees: none of another test's daemon.
mount -t bpf bpf root/sys/fs/bpf
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/tmp
cp "$package" root/tmp/ftp-alg.deb
ip link set lo up

inside() { chroot root env LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
fail() { echo "${0##*/}: $*" >&2; exit 1; }
