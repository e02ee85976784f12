//go:build unix

package overlay

import (
	"net"
	"os/user"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

var umaskMu sync.Mutex // umask belongs to the whole process

// listenPrivate makes a socket that nobody else can open, not even between
// bind and chmod.
func listenPrivate(path string) (net.Listener, error) {
	umaskMu.Lock()
	defer umaskMu.Unlock()
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}

// socketGroup is the id of group overlayd, if this system has one.
func socketGroup() (gid int, ok bool) {
	g, err := user.LookupGroup("overlayd")
	if err != nil {
		return 0, false
	}
	gid, err = strconv.Atoi(g.Gid)
	return gid, err == nil
}
