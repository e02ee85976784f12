//go:build profile

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"
)

// slice is how long one profile runs. A daemon that is killed loses its last.
const slice = 5 * time.Second

// With the tag "profile", which `make pgo` sets, a daemon writes processor
// profiles to $PROFILE_DIR for as long as it runs. They become default.pgo, by
// which the compiler optimises every other build.
func init() {
	dir := os.Getenv("PROFILE_DIR")
	if dir == "" {
		return
	}
	go func() {
		for n := 0; ; n++ {
			if err := profile(filepath.Join(dir, fmt.Sprintf("%d-%d.pprof", os.Getpid(), n))); err != nil {
				fmt.Fprintln(os.Stderr, "profile:", err)
				return
			}
		}
	}()
}

func profile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	time.Sleep(slice)
	pprof.StopCPUProfile()
	return nil
}
