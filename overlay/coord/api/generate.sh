#!/bin/sh
# Makes coord.pb.go and coord.connect.go out of coord.proto. Needs protoc.
set -eu
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
(cd "$root" && go build -modfile=tools.mod -o "$bin/" \
	google.golang.org/protobuf/cmd/protoc-gen-go \
	connectrpc.com/connect/cmd/protoc-gen-connect-go)
protoc -I . \
	--plugin="protoc-gen-go=$bin/protoc-gen-go" --go_out=. --go_opt=paths=source_relative \
	--plugin="protoc-gen-connect-go=$bin/protoc-gen-connect-go" --connect-go_out=. \
	--connect-go_opt=paths=source_relative,package_suffix= \
	coord.proto
