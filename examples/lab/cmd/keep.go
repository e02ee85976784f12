//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"overlayd/examples/lab"
)

// keep joins the three machines and waits for Ctrl-C.
func keep(ctx context.Context, binary string) (err error) {
	l, err := lab.New(ctx, lab.Options{Home: lab.Hard, Lab: lab.Hard, Overlayd: binary})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	start, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s, err := serve(start, l, "Ctrl-C in the other window ends it all.")
	if err != nil {
		return err
	}
	defer s.close()
	if _, err := l.Join(start); err != nil {
		return err
	}
	enter, err := writeEnter(l)
	if err != nil {
		return err
	}
	fmt.Print(drawing, "\nAll three machines have joined. Enter any of them, as root:\n\n")
	for _, m := range l.Machines() {
		fmt.Printf("  %-9s ip netns exec %s bash\n", m.Name, m.Namespace)
	}
	fmt.Printf(`
or, with this lab's overlayd on the PATH and its socket set:

  %[1]s laptop                        a shell
  %[1]s laptop overlayd status
  %[1]s laptop curl http://%[2]s/
  %[1]s laptop ping %[2]s
  %[1]s vps overlayd nodes

Logs: %[3]s/*.log
Ctrl-C ends it.
`, enter, lab.HostAddr, l.Dir)
	<-ctx.Done()
	fmt.Println("\nending")
	return nil
}

// writeEnter makes the script that runs a command in a machine.
func writeEnter(l *lab.Lab) (string, error) {
	var cases strings.Builder
	for _, m := range l.Machines() {
		fmt.Fprintf(&cases, "%s) ns=%s state=%s socket=%s ;;\n", m.Name, m.Namespace, m.StateDir(), m.Socket())
	}
	script := `#!/bin/sh
# Runs a command (default: a shell) in a machine of this lab.
case "$1" in
` + cases.String() + `*) echo "usage: $0 MACHINE [COMMAND...]" >&2; exit 2 ;;
esac
shift
[ $# -gt 0 ] || set -- bash
export OVERLAYD_STATE_DIR="$state" OVERLAYD_SOCKET="$socket" PATH="` + filepath.Dir(l.Options.Overlayd) + `:$PATH"
exec ip netns exec "$ns" "$@"
`
	file := filepath.Join(l.Dir, "enter")
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		return "", fmt.Errorf("write %s: %w", file, err)
	}
	return file, nil
}
