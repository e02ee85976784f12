package overlay

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/filter"
	"overlayd/overlay/policy"
)

const agreedPolicy = `
groups: {students: [alice]}
hosts: {nas: 192.168.1.201}
rules:
  - {name: ssh, src: students, dst: nas, ports: [tcp/22, icmp]}
  - {name: admin, src: bob, dst: "*"}
  - {name: office, src: "*", dst: 192.168.1.64/26, ports: ["tcp/631,9100-9102", udp/161], times: {days: mon-fri, hours: "08:00-18:00"}}
`

// TestPolicyAndFilterAgree: what a policy says of a person, the filter does to
// their packets, under the same rule's name.
func TestPolicyAndFilterAgree(t *testing.T) {
	p, err := policy.Parse([]byte(agreedPolicy))
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr
	w := policy.World{
		Users: []policy.User{{Name: "alice"}, {Name: "bob"}, {Name: "carol"}},
		Nodes: []policy.Node{
			{Name: "gw", Role: policy.Gateway, Addresses: []netip.Addr{a("172.18.0.200")}, Routes: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}},
			{Name: "alice-1", User: "alice", Addresses: []netip.Addr{a("172.18.0.11")}},
			{Name: "bob-1", User: "bob", Addresses: []netip.Addr{a("172.18.0.12")}},
			{Name: "carol-1", User: "carol", Addresses: []netip.Addr{a("172.18.0.13")}},
		},
	}
	monday := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	to, err := policy.ParseTarget("192.168.1.70:80")
	if err != nil {
		t.Fatal(err)
	}
	grants := []policy.Grant{{ID: "1", User: "carol", To: to, Until: monday.Add(time.Hour)}}
	r := policy.Resolve(p, w, grants)
	passed := 0
	for _, now := range []time.Time{monday, monday.Add(2 * time.Hour), monday.Add(8 * time.Hour), monday.Add(-48 * time.Hour)} {
		f := filter.New(filter.Options{}, now)
		if _, err := f.Swap(now, rulesOf(r.For("gw"), nil)); err != nil {
			t.Fatal(err)
		}
		var b filter.Batch
		for _, n := range w.Nodes[1:] {
			for _, dst := range []string{"192.168.1.201", "192.168.1.70", "192.168.1.7", "172.18.0.200"} {
				for _, proto := range []policy.Proto{policy.ProtoTCP, policy.ProtoUDP} {
					for _, port := range []uint16{22, 80, 161, 631, 9101, 9103} {
						target := policy.Target{Dst: policy.Term{Kind: policy.KindPrefix, Prefix: netip.PrefixFrom(a(dst), 32)},
							Services: []policy.Service{{Proto: proto, First: port, Last: port}}}
						v := r.Reaches(policy.Term{Kind: policy.KindUser, Name: n.User}, target, now)
						f.In(now, [][]byte{firstPacket(n.Addresses[0], a(dst), uint8(proto), port)}, &b)
						if pass := b.Verdicts[0] == filter.Pass; pass != v.Allowed {
							t.Errorf("%s to %s at %s: the policy says %+v, the filter %s", n.User, target, now, v, b.Verdicts[0])
						}
						if v.Allowed {
							passed++
							last := lastEvent(f)
							if last.Rule != v.Rule || last.User != n.User || last.Kind != filter.FlowBegan {
								t.Errorf("%s to %s: the policy names %s, the record %+v", n.User, target, v.Rule, last)
							}
						}
					}
				}
			}
		}
	}
	if passed == 0 {
		t.Error("nothing passed")
	}
}

func lastEvent(f *filter.Filter) (last filter.Event) {
	events := make([]filter.Event, 64)
	if n := f.Take(events); n > 0 {
		last = events[n-1]
	}
	return last
}

// firstPacket is a SYN or a datagram.
func firstPacket(src, dst netip.Addr, proto uint8, port uint16) []byte {
	length := 28
	if proto == uint8(policy.ProtoTCP) {
		length = 40
	}
	b := make([]byte, length)
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], port)
	if length == 40 {
		b[32], b[33] = 0x50, 2
	} else {
		b[25] = 8
	}
	return b
}
