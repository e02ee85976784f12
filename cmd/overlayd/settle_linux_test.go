package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestReadOnly(t *testing.T) {
	const smaps = `00400000-00e44000 r-xp 00000000 fe:00 10518850                           /opt/over layd
Rss:                7760 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd 
00e44000-01adf000 r--p 00a44000 fe:00 10518850                           /opt/over layd
Anonymous:             0 kB
01adf000-01b00000 r--p 016df000 fe:00 10518850                           /opt/over layd
Anonymous:             8 kB
01b00000-01b67000 rw-p 016df000 fe:00 10518850                           /opt/over layd
Anonymous:             0 kB
2fade000000-2fae1400000 rw-p 00000000 00:00 0 
Anonymous:          6384 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:00 77                         /lib/other.so
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0xe44000}, {0xe44000, 0x1adf000}}
	if got := readOnly(strings.NewReader(smaps), "/opt/over layd"); !slices.Equal(got, want) {
		t.Errorf("read-only mappings %x, want %x", got, want)
	}
	if got := readOnly(strings.NewReader("Anonymous: 0 kB\n"+smaps), "/opt/overlayd"); len(got) != 0 {
		t.Errorf("mappings of another file: %x", got)
	}
}

// TestSettle: the program goes on, with less of its file in memory.
func TestSettle(t *testing.T) {
	before := rssFile(t)
	settle()
	if after := rssFile(t); after >= before {
		t.Errorf("%d kB of the program file in memory, %d kB before", after, before)
	}
}

// rssFile is how much of this process's memory is files, in kB.
func rssFile(t *testing.T) (kb int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "RssFile:")
	if _, err := fmt.Sscan(after, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}
