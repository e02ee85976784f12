package underlay

import (
	"slices"
	"time"
)

// Move says where this machine is now. The peer is told when it may be reached
// elsewhere than before.
func (f *finder) Move(now time.Time, here *locality) {
	moved := !slices.Equal(f.here.candidates, here.candidates)
	f.here = here
	for _, s := range f.spots {
		s.rank = here.rank(s.addr.Addr(), s.mapped)
	}
	f.expel(now)
	if moved {
		f.wait = 0
		f.nextSearch = now
		if soonest := f.callAt.Add(callGap); soonest.After(now) {
			f.nextSearch = soonest
		}
	}
}
