package underlay

import (
	"encoding/binary"
	"time"
)

const (
	// tellEvery is how often a peer that we talk to by relays is told where we
	// are although nothing changed: an earlier word may have been lost.
	tellEvery = 10 * time.Second
	// answerGap limits how often a peer can make us tell it.
	answerGap = 100 * time.Millisecond
	// noticeLife is for how long an older notice is refused. A peer whose clock
	// was ahead and set right is believed again after that, but nothing older
	// than that by our clock: somebody may have kept it.
	noticeLife = time.Minute
)

// tellAgain are the gaps in which a change is repeated.
var tellAgain = []time.Duration{250 * time.Millisecond, time.Second}

// teller decides when a peer is told at which relays we are. It does no I/O.
type teller struct {
	version uint64 // of what was told last; 0: nothing was
	at      time.Time
	tries   int // how often that was told

	heard   uint64 // the peer's last notice's number
	heardAt time.Time
}

// step says whether to tell now, and whether to ask the peer for the same.
// version is that of what there is to tell; known is whether the peer has said
// where it is, direct whether it is reached without relays.
func (t *teller) step(now time.Time, version uint64, talking, known, direct bool) (tell, ask bool, next time.Time) {
	if !talking {
		return false, false, time.Time{}
	}
	if version != t.version {
		t.version, t.tries = version, 0
	} else if at, ok := t.due(direct && known); !ok {
		return false, false, time.Time{}
	} else if now.Before(at) {
		return false, false, at
	}
	t.at = now
	t.tries++
	next, _ = t.due(direct && known)
	return true, !known, next
}

// due is when to tell the same once more; false: there is no need.
func (t *teller) due(quiet bool) (time.Time, bool) {
	if t.tries > 0 && t.tries <= len(tellAgain) {
		return t.at.Add(tellAgain[t.tries-1]), true
	}
	return t.at.Add(tellEvery), !quiet
}

// answer says whether to tell a peer that asks.
func (t *teller) answer(now time.Time, version uint64) bool {
	if now.Sub(t.at) < answerGap && t.version == version {
		return false
	}
	t.at, t.version = now, version
	t.tries = max(t.tries, 1)
	return true
}

// fresh reports whether a notice is newer than the last one, and notes it.
func (t *teller) fresh(now time.Time, m probe) bool {
	n := binary.LittleEndian.Uint64(m.id[:])
	if n <= t.heard && (now.Sub(t.heardAt) < noticeLife || n < uint64(now.Add(-noticeLife).UnixNano())) {
		return false
	}
	t.heard, t.heardAt = n, now
	return true
}

// newNotice says where we are. Its id is a number that grows.
func newNotice(now time.Time, own []presence, ask bool) probe {
	m := probe{kind: probeNotice, ask: ask, places: own}
	binary.LittleEndian.PutUint64(m.id[:], uint64(now.UnixNano()))
	return m
}
