package tunnel

import (
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"overlayd/overlay/key"
)

// Options say what New makes a device of.
type Options struct {
	TUN  tun.Device // required; closed by Close
	Bind conn.Bind  // required; closed by Close
	Key  key.Private
	Log  *slog.Logger // nil: none
}

// Device is one running WireGuard device.
type Device struct {
	dev     *device.Device // set by New, then read-only
	tun     *gatedTUN
	nudge   *nudger
	met     *contacts
	narrow  *narrows
	stop    chan struct{} // closed by Close
	closing sync.Once
	running sync.WaitGroup // the nudger

	mu sync.Mutex // guards the compare-and-set of SetPeers
}

// New makes a device without peers. It is up when New returns.
func New(o Options) (*Device, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	room := roomFor(runtime.NumCPU()) // as many workers WireGuard starts
	out, in := newGate(room), newGate(room)
	narrow := &narrows{}
	gated := newGatedTUN(o.TUN, out, in, narrow)
	d := &Device{tun: gated, narrow: narrow, stop: make(chan struct{})}
	d.met = newContacts(d.Handshake)
	d.nudge = newNudger(o.Key.Public(), d.beginHandshake, d.Stats)
	dev := device.NewDevice(gated, &gatedBind{Bind: o.Bind, out: out, in: in, met: d.met}, logger(o.Log))
	dev.DisableSomeRoamingForBrokenMobileSemantics() // an Endpoint is a peer, and stays it
	d.dev = dev
	if err := dev.SetPrivateKey(device.NoisePrivateKey(o.Key.Expose())); err != nil {
		dev.Close()
		return nil, fmt.Errorf("set the wireguard key: %w", err)
	}
	if err := dev.Up(); err != nil {
		dev.Close()
		return nil, fmt.Errorf("start wireguard: %w", err)
	}
	d.running.Go(func() { d.nudge.run(d.stop) })
	return d, nil
}

// SetPeers makes the device's peers those of want, whatever they were. Sessions
// and counters of peers that stay are kept.
func (d *Device) SetPeers(want []Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tun.guard.back.flush()
	have, err := d.config()
	if err != nil {
		return err
	}
	d.met.follow(want) // first: a peer's first message may come at once
	d.narrow.follow(want)
	d.tun.turn.follow(want)
	change := diff(have.peers, want)
	if change == "" {
		return nil
	}
	if err := d.dev.IpcSet(change); err != nil {
		return fmt.Errorf("set wireguard peers: %w", err)
	}
	return nil
}

// SetKey gives the device another key. No packet is lost for it: those of the old
// sessions are still taken, and what is sent waits for the new ones, which the
// peers begin when they hear of the key, and this side for whom they do not.
func (d *Device) SetKey(k key.Private) error {
	had, err := d.Stats()
	if err != nil {
		return err
	}
	if err := d.dev.SetPrivateKey(device.NoisePrivateKey(k.Expose())); err != nil {
		return fmt.Errorf("set the wireguard key: %w", err)
	}
	d.nudge.rekey(k.Public())
	for peer, s := range had {
		if time.Since(s.LastHandshake) < device.RejectAfterTime {
			d.ExpectHandshake(peer)
		}
	}
	return nil
}

// Stats returns what WireGuard counted, by peer.
func (d *Device) Stats() (map[key.Public]Stat, error) {
	c, err := d.config()
	return c.stats, err
}

func (d *Device) config() (config, error) {
	text, err := d.dev.IpcGet()
	if err != nil {
		return config{}, fmt.Errorf("read wireguard peers: %w", err)
	}
	return parseConfig(text)
}

// Handshake begins a new session with the peer: call it after our own restart.
// It returns at once. The device does so by itself for a peer that uses a
// session from before it was made.
func (d *Device) Handshake(k key.Public) { d.nudge.want(k, false) }

// Greet begins a new session with a device where it last was: after our own
// restart, of which it would notice late. It goes on roaming from there.
func (d *Device) Greet(k key.Public, at string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	have, err := d.config()
	if err != nil {
		return err
	}
	if p, ok := have.peers[k]; !ok || p.Endpoint != "" { // gone, or heard of since
		return nil
	}
	if err := d.dev.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", k.Hex(), at)); err != nil {
		return fmt.Errorf("set a device's endpoint: %w", err)
	}
	d.Handshake(k)
	return nil
}

// ExpectHandshake leaves the beginning to the peer, which was restarted, and
// begins only if nothing comes: two that begin in the same moment spoil each
// other's handshake, and WireGuard tries again after five seconds only.
func (d *Device) ExpectHandshake(k key.Public) { d.nudge.want(k, true) }

// beginHandshake sends an initiation now, whether or not one was sent in the
// last five seconds, but not within a moment of one or of an answer: then it
// returns when that was. Until the new session is up, packets wait for it: the
// other side no longer has the old one.
func (d *Device) beginHandshake(k key.Public) (busy time.Time) {
	peer := d.dev.LookupPeer(device.NoisePublicKey(k.Bytes()))
	if peer == nil {
		return time.Time{}
	}
	busy = d.met.forget(k, time.Now, peer.ExpireCurrentKeypairs)
	if busy.IsZero() {
		peer.SendHandshakeInitiation(false) // logs its errors itself
	}
	return busy
}

// Done is closed when the device has ended: by Close, or because its TUN is
// gone.
func (d *Device) Done() <-chan struct{} { return d.dev.Wait() }

// Close ends the device, its TUN and its Bind, and returns when all is over.
func (d *Device) Close() {
	d.closing.Do(func() { close(d.stop) })
	d.running.Wait()
	d.dev.Close()
	<-d.dev.Wait()
	<-d.tun.ended
}
