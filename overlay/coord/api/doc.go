// Package api is the coordinator's API as protobuf messages and Connect
// services. coord.proto is the source; the Go files are generated from it.
// Only overlay/coord uses it: everybody else uses the Go types there.
package api

//go:generate ./generate.sh
