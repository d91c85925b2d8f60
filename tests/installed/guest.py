import subprocess, time
def sh(c):
    t=time.monotonic(); r=subprocess.run(c, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode(); print(c, "%.1f"%(time.monotonic()-t), r, flush=True)
print("uptime", open("/proc/uptime").read(), flush=True)
sh("systemctl is-system-running");sh("systemctl --failed --no-pager"); sh("free -m; ls /run; cat /sys/kernel/security/lsm"); sh("journalctl -b -p warning --no-pager | tail -30"); sh("mount | head -30")
sh("modprobe nfnetlink_queue && lsmod | head")
sh("systemctl list-jobs --no-pager");
sh("journalctl -b --no-pager -o short-monotonic| tail -60"); 
sh("timeout 20 systemd-analyze time")
