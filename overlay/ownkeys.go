package overlay

import (
	"log/slog"
	"sync"

	"overlayd/overlay/key"
)

// ownKeys are a node's WireGuard keys: the one in use, and while it is being
// replaced the one that comes after it.
type ownKeys struct {
	log *slog.Logger // set by newOwnKeys, then read-only, as dir
	dir stateDir

	mu   sync.Mutex // guards the rest
	id   *identity  // of this only WireGuard and Next
	live *machine   // whose tunnel has the key in use; nil: there is none
}

func newOwnKeys(log *slog.Logger, dir stateDir, id *identity) *ownKeys {
	return &ownKeys{log: log, dir: dir, id: id}
}

// current returns the key in use.
func (k *ownKeys) current() key.Private {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.id.WireGuard
}

// wished is the key that the coordinator is told: the new one, if there is one.
func (k *ownKeys) wished() key.Public {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id.rotates() {
		return k.id.Next.Public()
	}
	return k.id.WireGuard.Public()
}

// renew makes a new key, of which the coordinator is to be told now. It is kept
// first: whatever happens then, either key is at hand.
func (k *ownKeys) renew() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id.rotates() {
		return nil
	}
	next := *k.id
	next.Next = key.NewPrivate()
	if err := k.dir.saveIdentity(&next); err != nil {
		return err
	}
	k.id.Next = next.Next
	return nil
}

// told is called when the coordinator tells all peers that pub is this node's key.
// If that is the new one it takes the old one's place, before most of them know.
func (k *ownKeys) told(pub key.Public) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.id.rotates() || k.id.Next.Public() != pub {
		return
	}
	k.id.WireGuard, k.id.Next = k.id.Next, key.Private{}
	k.use() // before the disk: the peers begin sessions any moment
	if err := k.dir.saveIdentity(k.id); err != nil {
		k.log.Error("the new WireGuard key is in use and not saved as such; the next start does it", "err", err)
	}
	k.log.Info("the WireGuard key was replaced", "key", pub.Short())
}

// attach says which tunnel there is; nil: none. It gets the key in use, which may
// be another than when it was made.
func (k *ownKeys) attach(live *machine) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.live = live
	k.use()
}

// use gives the tunnel the key in use; mu is held.
func (k *ownKeys) use() {
	if k.live == nil || k.live.key.Equal(k.id.WireGuard) {
		return
	}
	k.live.key = k.id.WireGuard
	k.live.bind.SetKey(k.live.key)
	if err := k.live.dev.SetKey(k.live.key); err != nil {
		k.log.Error("the new WireGuard key cannot be used", "err", err)
	}
}
