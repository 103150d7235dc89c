package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// envLab tells a run of the program where it is: unset outside, "inside" in the lab, and "enter MNTNS" in the run that has
// to finish its set-up, MNTNS being the mount namespace of the caller. That name is compared with the run's own, so that
// a variable set by hand cannot make the set-up mount over the machine's directories.
const envLab = "SLUICE_LAB"

// exitNoProc is the exit code of a run inside which may not mount /proc; it is run again without a PID namespace.
const exitNoProc = 125

const (
	stageInside = "inside"
	stageEnter  = "enter "
	stageNoPID  = "enter-without-pid "
)

// errOutside is set by Main when the lab could not be entered; Need skips with it.
var errOutside = errors.New("the test binary did not enter the lab: its TestMain does not call lab.Main")

// Enter moves the program into a lab. It is called once, early, before the program has opened or started anything that the
// lab should not have, and before other goroutines matter.
//
// Inside, it returns true: go on. Outside, it runs the program again inside (same arguments, environment and standard
// streams), passes signals on, waits, and returns false with the exit code to leave with. Already inside (a child process
// of the lab) it returns true at once. The error says in one line what is missing and what to do.
func Enter() (inside bool, code int, err error) {
	stage := os.Getenv(envLab)
	switch {
	case stage == stageInside:
		return true, 0, nil
	case strings.HasPrefix(stage, stageEnter), strings.HasPrefix(stage, stageNoPID):
		if err := settle(stage); err != nil {
			return false, 1, explain(err, os.Getuid(), readSysctl)
		}
		errOutside = nil
		return true, 0, os.Setenv(envLab, stageInside)
	}
	code, err = runInside(stageEnter, unix.CLONE_NEWPID)
	if err == nil && code == exitNoProc {
		code, err = runInside(stageNoPID, 0)
	}
	if err != nil {
		return false, 1, explain(err, os.Getuid(), readSysctl)
	}
	return false, code, nil
}

// Main is the TestMain of a package whose tests build labs. It does not return. Where a lab is not allowed, the tests run
// outside and Need skips those that need one.
func Main(m Runner) {
	inside, code, err := Enter()
	if err != nil {
		errOutside = err
	} else if !inside {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// Inside reports whether the program runs in a lab. A TestMain that has to use the machine's own network, to build something for
// instance, does it while this is false, before [Main].
func Inside() bool { return os.Getenv(envLab) != "" }

// Need skips the test, with the reason, unless it runs inside a lab.
func Need(t Skipper) {
	t.Helper()
	if os.Getenv(envLab) != stageInside {
		t.Skipf("needs a lab: %v", errOutside)
	}
}

// NeedTUN skips the test, with the reason, unless it runs inside a lab and may make TUN devices there.
func NeedTUN(t Skipper) {
	t.Helper()
	Need(t)
	if err := CheckTUN(); err != nil {
		t.Skipf("needs a TUN device: %v", err)
	}
}

// CheckTUN says in one line why this program cannot make TUN devices, and what to do; nil if it can open their clone device.
func CheckTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no /dev/net/tun; load the module (sudo modprobe tun), or start the container with --device /dev/net/tun")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/net/tun may not be opened; run as root, or allow it: sudo chmod 666 /dev/net/tun")
	default:
		return fmt.Errorf("/dev/net/tun: %w; load the module: sudo modprobe tun", err)
	}
}

// runInside runs this program again in new namespaces and returns its exit code.
func runInside(stage string, flags uintptr) (int, error) {
	mnt, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return 0, fmt.Errorf("lab: /proc is not mounted: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envLab+"="+stage+mnt)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | flags,
		Pdeathsig:  syscall.SIGKILL,
	}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}

	// The death signal follows the thread that forked, so that thread must not end before the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("lab: new namespaces: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go pass(signals, cmd.Process, ended)
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("lab: %w", err)
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// signalAgain is how often a signal is passed on until the run inside has ended.
const signalAgain = 250 * time.Millisecond

// pass passes signals on to a process until it has ended. The first process of a PID namespace gets none that it has no handler for
// yet (pid_namespaces(7)), so each is repeated until another comes.
func pass(signals <-chan os.Signal, to *os.Process, ended <-chan struct{}) {
	var last os.Signal
	again := time.NewTicker(signalAgain)
	defer again.Stop()
	for {
		select {
		case last = <-signals:
		case <-again.C:
		case <-ended:
			return
		}
		if last != nil {
			_ = to.Signal(last) // it may be gone already
		}
	}
}

// settle finishes the set-up of the run inside: private mounts, its own /proc and /run/wireguard, loopback up.
func settle(stage string) error {
	mnt, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("lab: /proc is not mounted: %w", err)
	}
	if strings.HasSuffix(stage, " "+mnt) {
		return fmt.Errorf("lab: %s is set, but this is not a lab; unset it", envLab)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("lab: make mounts private: %w", err)
	}
	if strings.HasPrefix(stage, stageEnter) {
		err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if err != nil {
			os.Exit(exitNoProc)
		}
	}
	if err := coverRun(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lab: loopback up: %w", err)
	}
	return nil
}

// coverRun gives the lab an empty /run/wireguard (and /var/run/wireguard, where that is not the same). If the directory
// does not exist, and making it would leave it on the machine, /run is replaced by a tmpfs into which the directories of
// the real one are bound.
func coverRun() error {
	for _, run := range []string{"/run", "/var/run"} {
		target, err := os.Readlink(run)
		if err == nil && (target == "/run" || target == "../run") {
			continue
		}
		if _, err := os.Stat(run); err != nil {
			continue
		}
		if _, err := os.Stat(run + "/wireguard"); err != nil {
			if err := rebuildRun(run); err != nil {
				return err
			}
		}
		if err := unix.Mount("tmpfs", run+"/wireguard", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("lab: tmpfs on %s/wireguard: %w", run, err)
		}
	}
	return nil
}

// rebuildRun covers dir with a tmpfs that has the directories and links of dir, and an empty directory wireguard.
func rebuildRun(dir string) error {
	old, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer old.Close()
	entries, err := old.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("lab: tmpfs on %s: %w", dir, err)
	}
	for _, e := range entries {
		behind := fmt.Sprintf("/proc/self/fd/%d/%s", old.Fd(), e.Name())
		at := dir + "/" + e.Name()
		switch {
		case e.IsDir():
			// What cannot be bound (a directory of another user's mount) stays an empty directory.
			if os.Mkdir(at, 0o755) == nil {
				_ = unix.Mount(behind, at, "", unix.MS_BIND|unix.MS_REC, "")
			}
		case e.Type()&os.ModeSymlink != 0:
			if target, err := os.Readlink(behind); err == nil {
				_ = os.Symlink(target, at)
			}
		}
	}
	if err := os.Mkdir(dir+"/wireguard", 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// readSysctl returns the value of a sysctl, "" if this kernel does not have it.
func readSysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// explain adds to a refusal the way out of it. Other errors are returned as they are.
func explain(err error, uid int, sysctl func(string) string) error {
	refused := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS)
	switch {
	case !refused && !full:
		return err
	case sysctl("user.max_user_namespaces") == "0" && full:
		return fmt.Errorf("%w; run as root, or allow user namespaces: sudo sysctl -w user.max_user_namespaces=10000", err)
	case sysctl("kernel.unprivileged_userns_clone") == "0":
		return fmt.Errorf("%w; run as root, or allow user namespaces: sudo sysctl -w kernel.unprivileged_userns_clone=1", err)
	case sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		return fmt.Errorf("%w; run as root, or allow user namespaces: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0", err)
	case uid == 0:
		return fmt.Errorf("%w; root here may not make namespaces: in a container, start it with --privileged (or CAP_SYS_ADMIN and no seccomp filter)", err)
	default:
		return fmt.Errorf("%w; run as root: user namespaces are refused here", err)
	}
}
