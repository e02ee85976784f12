package udp

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	tests := []struct {
		name  string
		every time.Duration
		bytes int
		want  bool
	}{
		{"a ping now and then", 10 * time.Millisecond, 96, false},
		{"a full 5 Mbit/s line", 2 * time.Millisecond, 1452, false},
		{"100 Mbit/s in trains", 5 * time.Millisecond, 63888, false},
		{"single datagrams at 200 Mbit/s", 58 * time.Microsecond, 1452, true},
		{"trains at 2 Gbit/s", 250 * time.Microsecond, 63888, true},
	}
	for _, tt := range tests {
		var p pace
		now := time.Unix(0, 0)
		var got bool
		for range 1000 {
			now = now.Add(tt.every)
			got = p.fast(now, tt.bytes)
		}
		if got != tt.want {
			t.Errorf("%s: busy %v, want %v", tt.name, got, tt.want)
		}
		if p.fast(now.Add(time.Second), tt.bytes) {
			t.Errorf("%s: still busy after a second of silence", tt.name)
		}
	}
}
