package coord

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// occupancy is what an allocation has to respect.
type occupancy struct {
	used     map[uint32]string    // label: the name of the node that has it
	promised map[uint32]string    // label: the id of the open invite that wishes for it
	retired  map[uint32]time.Time // label: when the node that had it was removed
}

// allocate chooses a label. With a wish it is the wished address's, or a
// conflict; promisedTo is the invite that makes the wish. Without, it is the
// lowest label that nobody ever had, and when there is none left, the one whose
// node was removed longest ago: packets and tickets for a removed node may be
// on their way for a while.
func allocate(overlay netip.Prefix, o occupancy, wish netip.Addr, promisedTo string) (uint32, error) {
	if wish.IsValid() {
		return o.grant(overlay, wish, promisedTo)
	}
	top := lastLabel(overlay)
	for l := uint32(1); l <= top; l++ {
		if _, retired := o.retired[l]; !retired && o.free(l) {
			return l, nil
		}
	}
	var best uint32
	for l, when := range o.retired {
		if l < 1 || l > top || !o.free(l) {
			continue
		}
		if first := o.retired[best]; best == 0 || when.Before(first) || when.Equal(first) && l < best {
			best = l
		}
	}
	if best == 0 {
		return 0, problem(KindConflict, "remove a node (overlayd nodes remove), or revoke an invite that holds an address",
			"the overlay %s has no free address left: it holds %d", overlay, top)
	}
	return best, nil
}

func (o occupancy) free(l uint32) bool {
	return o.used[l] == "" && o.promised[l] == ""
}

func (o occupancy) grant(overlay netip.Prefix, wish netip.Addr, promisedTo string) (uint32, error) {
	first, last := addrOf(overlay, 1), addrOf(overlay, lastLabel(overlay))
	hint := fmt.Sprintf("choose one between %s and %s, or none", first, last)
	switch {
	case !overlay.Contains(wish):
		return 0, problem(KindConflict, hint, "the address %s is outside the overlay %s", wish, overlay)
	case wish == overlay.Addr():
		return 0, problem(KindConflict, hint, "%s is the network address of the overlay %s", wish, overlay)
	case wish.Compare(last) > 0:
		return 0, problem(KindConflict, hint, "%s is the broadcast address of the overlay %s, or above its last node", wish, overlay)
	}
	l := labelOf(overlay, wish)
	if name := o.used[l]; name != "" {
		return 0, problem(KindConflict, "choose another address, or remove that node: overlayd nodes remove "+name,
			"the address %s is taken by the node %s", wish, name)
	}
	if id := o.promised[l]; id != "" && id != promisedTo {
		return 0, problem(KindConflict, "choose another address, or revoke that invite: overlayd invite revoke "+id,
			"the address %s is promised to the invite %s", wish, id)
	}
	return l, nil
}

// maxLabelBits is how much of a label fits into WireGuard's reserved bytes.
const maxLabelBits = 24

// lastLabel is the highest label in a prefix: all ones is for broadcast.
func lastLabel(overlay netip.Prefix) uint32 {
	return 1<<min(maxLabelBits, overlay.Addr().BitLen()-overlay.Bits()) - 2
}

// addrOf returns the address whose host part is the label.
func addrOf(overlay netip.Prefix, label uint32) netip.Addr {
	b := overlay.Masked().Addr().AsSlice()
	tail := b[len(b)-4:]
	binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)|label)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// labelOf returns the host part of an address within the prefix.
func labelOf(overlay netip.Prefix, a netip.Addr) uint32 {
	b, n := a.AsSlice(), overlay.Masked().Addr().AsSlice()
	return binary.BigEndian.Uint32(b[len(b)-4:]) &^ binary.BigEndian.Uint32(n[len(n)-4:])
}

// checkOverlay says whether a prefix can hold a network.
func checkOverlay(p netip.Prefix) error {
	const hint = "use a private prefix that no machine is connected to, such as 172.18.0.0/24"
	switch {
	case !p.IsValid():
		return problem(KindInvalid, hint, "the overlay prefix is not set")
	case p != p.Masked():
		return problem(KindInvalid, "write "+p.Masked().String(), "the overlay %s has host bits set", p)
	case p.Addr().Is4() && p.Bits() < 32-maxLabelBits:
		return problem(KindInvalid, hint, "the overlay %s is too large: /8 is the largest", p)
	case p.Addr().BitLen()-p.Bits() < 2:
		return problem(KindInvalid, hint, "the overlay %s is too small: /30 is the smallest", p)
	case reserved(p) != "":
		return problem(KindInvalid, hint, "the overlay %s overlaps %s", p, reserved(p))
	}
	return nil
}
