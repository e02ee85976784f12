//go:build !unix

package overlay

import "net"

// listenPrivate: on Windows the directory's access list guards the socket.
func listenPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }

func socketGroup() (gid int, ok bool) { return 0, false }
