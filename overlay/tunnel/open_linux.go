package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	kernel "overlayd/overlay/tun"
)

// OpenTUN makes a TUN interface, which lives until it is closed. Its errors say
// what to do.
func OpenTUN(name string, mtu int) (tun.Device, error) {
	if len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("open tun %s: a name has at most %d characters", name, unix.IFNAMSIZ-1)
	}
	if _, err := net.InterfaceByName(name); err == nil {
		return nil, fmt.Errorf("open tun %s: %w", name, errTaken(name))
	}
	dev, err := kernel.Open(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("open tun %s: %w", name, explain(name, err))
	}
	return dev, nil
}

func errTaken(name string) error {
	return fmt.Errorf("an interface of that name exists (hint: choose another with --interface, or remove it: ip link del %s)", name)
}

// explain puts into words what the kernel's number means here.
func explain(name string, err error) error {
	_, missing := os.Stat("/dev/net/tun")
	switch {
	case errors.Is(missing, fs.ErrNotExist):
		return errors.New("there is no /dev/net/tun (hint: modprobe tun; in a container start it with --device /dev/net/tun)")
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return errors.New("the kernel has no tun driver (hint: modprobe tun)")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return errors.New("no permission (hint: run as root; in a container start it with --cap-add NET_ADMIN --device /dev/net/tun)")
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return errTaken(name)
	}
	return err
}
