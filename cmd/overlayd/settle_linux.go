package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// settle gives back what only the start needed: free pages of the heap, and
// pages of the program file. For each of those that is touched the kernel maps
// its fifteen neighbours too, so that after the start almost all of the file
// counts as this process's memory (madvise(2), MADV_DONTNEED; what is needed
// again comes from the page cache). Nothing depends on it.
func settle() {
	debug.FreeOSMemory()
	exe, err := os.Executable()
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, s := range readOnly(f, exe) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, s.begin, s.end-s.begin, unix.MADV_DONTNEED)
	}
}

// mapping is a range of addresses, end excluded.
type mapping struct{ begin, end uintptr }

// readOnly lists where a process has the file mapped without the right to write,
// and has not written before either, as a loader does that moves a program.
// smaps is as in proc_pid_smaps(5).
func readOnly(smaps io.Reader, file string) (list []mapping) {
	var s mapping
	ours := false
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) == 3 && f[0] == "Anonymous:" {
			if ours && f[1] == "0" {
				list = append(list, s)
			}
			continue
		}
		if len(f) >= 5 && !strings.HasSuffix(f[0], ":") {
			_, err := fmt.Sscanf(f[0], "%x-%x", &s.begin, &s.end)
			ours = err == nil && !strings.Contains(f[1], "w") && strings.Join(f[5:], " ") == file
		}
	}
	return list
}
