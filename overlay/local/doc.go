// Package local is the API between the overlayd command line and the daemon on
// the same machine: protobuf messages served with Connect over a Unix socket.
// Package overlay implements and calls it.
package local

//go:generate ./generate.sh
