package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Proto is a transport protocol as IP numbers it.
type Proto uint8

// The protocols a rule can name. ICMP means both families' echo; the errors of
// ICMP belong to the flow they quote and need no rule.
const (
	ProtoAny  Proto = 0
	ProtoICMP Proto = 1
	ProtoTCP  Proto = 6
	ProtoUDP  Proto = 17
)

var protoNames = map[string]Proto{"any": ProtoAny, "icmp": ProtoICMP, "tcp": ProtoTCP, "udp": ProtoUDP}

func (p Proto) String() string {
	for name, v := range protoNames {
		if v == p {
			return name
		}
	}
	return strconv.Itoa(int(p))
}

// MarshalText returns the protocol's name.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a protocol's name.
func (p *Proto) UnmarshalText(b []byte) error {
	v, ok := protoNames[string(b)]
	if !ok {
		return fmt.Errorf("read protocol: %.20q is none of any, icmp, tcp, udp", b)
	}
	*p = v
	return nil
}

// Service is a protocol and a range of its ports.
type Service struct {
	Proto Proto  `json:"proto"`
	First uint16 `json:"first"` // 0 to 65535 means all
	Last  uint16 `json:"last"`
}

// AnyService is every packet.
var AnyService = Service{Proto: ProtoAny, Last: 65535}

func allPorts(p Proto) Service { return Service{Proto: p, Last: 65535} }

func (s Service) String() string {
	switch {
	case s.First == 0 && s.Last == 65535:
		return s.Proto.String()
	case s.First == s.Last:
		return fmt.Sprintf("%s/%d", s.Proto, s.First)
	}
	return fmt.Sprintf("%s/%d-%d", s.Proto, s.First, s.Last)
}

// covers reports whether everything in o is in s.
func (s Service) covers(o Service) bool {
	return (s.Proto == ProtoAny || s.Proto == o.Proto) && s.First <= o.First && o.Last <= s.Last
}

// meets reports whether something in o is in s.
func (s Service) meets(o Service) bool {
	return (s.Proto == ProtoAny || o.Proto == ProtoAny || s.Proto == o.Proto) && s.First <= o.Last && o.First <= s.Last
}

// parseService reads "tcp/22", "tcp/80,443,8000-8100", "udp", "icmp" or "any".
func parseService(s string) ([]Service, error) {
	name, ports, some := strings.Cut(strings.TrimSpace(s), "/")
	proto, ok := protoNames[name]
	switch {
	case !ok && !some && strings.Trim(name, "0123456789-,") == "" && name != "":
		return nil, hinted("write tcp/"+name+" or udp/"+name+"; several ports of one protocol in quotes: \"tcp/80,443\"",
			"port %.40s says no protocol", name)
	case !ok:
		return nil, hinted("write tcp, udp, icmp or any, and ports after a slash: tcp/22", "%.40q is not a protocol", name)
	case !some:
		return []Service{allPorts(proto)}, nil
	case proto != ProtoTCP && proto != ProtoUDP:
		return nil, hinted("leave the ports away, or write tcp/ or udp/", "%s has no ports", name)
	}
	var list []Service
	for part := range strings.SplitSeq(ports, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		lo, err := parsePort(first)
		if err != nil {
			return nil, err
		}
		hi := lo
		if isRange {
			if hi, err = parsePort(last); err != nil {
				return nil, err
			}
		}
		if hi < lo {
			return nil, hinted(fmt.Sprintf("write %d-%d", hi, lo), "range %d-%d ends before it begins", lo, hi)
		}
		list = append(list, Service{Proto: proto, First: lo, Last: hi})
	}
	return list, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err != nil || n == 0 {
		return 0, hinted("a port is 1 to 65535", "%.40q is not a port", s)
	}
	return uint16(n), nil
}

// sortServices puts services in order and joins those that touch.
func sortServices(list []Service) []Service {
	slices.SortFunc(list, func(a, b Service) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	var out []Service
	for _, s := range list {
		if n := len(out); n > 0 && out[n-1].Proto == s.Proto && int(s.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, s.Last)
			continue
		}
		out = append(out, s)
	}
	if slices.Contains(out, AnyService) {
		return []Service{AnyService}
	}
	return out
}
