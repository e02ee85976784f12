package routing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watched are the groups of changes that concern us. Those of rules are among
// them because other programs remove rules they do not know.
var watched = []int{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
}

// Watch calls changed, never concurrently, when a link, an address, a route or a
// rule of this machine changed: soon after the first change, then at most four
// times a second. It returns nil when ctx ends, after the last call returned.
func Watch(ctx context.Context, changed func()) error {
	socket, err := subscribe(watched)
	if err != nil {
		return fmt.Errorf("watch links and routes: %w", err)
	}
	return watch(ctx, socket, changed)
}

// watch is Watch with a socket that has subscribed. It closes the socket.
func watch(ctx context.Context, socket *os.File, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan struct{}, 1) // closed by the reader
	var wg sync.WaitGroup
	var broken error // set before events is closed
	wg.Go(func() {
		defer close(events)
		broken = readEvents(socket, events)
	})
	stop := context.AfterFunc(ctx, func() { socket.Close() }) // wakes the reader
	debounce(ctx, events, changed)
	if stop() {
		socket.Close()
	}
	wg.Wait()
	if ctx.Err() == nil && broken != nil {
		return fmt.Errorf("watch links and routes: %w", broken)
	}
	return nil
}

// subscribe opens a netlink socket that hears of changes.
func subscribe(groups []int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, g := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("subscribe", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// readEvents tells events of every message, until the socket is closed. What a
// message says does not matter: whoever is told looks at the whole. So a message
// that was lost because there were too many is as good as one that was read.
func readEvents(socket *os.File, events chan<- struct{}) error {
	buf := make([]byte, 16<<10)
	for {
		_, err := socket.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case events <- struct{}{}:
		default: // one is waiting already
		}
	}
}
