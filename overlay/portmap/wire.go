package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// PCP (RFC 6887) and NAT-PMP (RFC 6886) share UDP port 5351 of the router. All
// numbers are big endian, lifetimes and epochs in seconds:
//
//	PCP request     0: 2 | 1: op | 2: zero 2 | 4: lifetime 4 | 8: client's address 16
//	PCP answer      0: 2 | 1: op+128 | 2: zero | 3: result | 4: lifetime 4 | 8: epoch 4 | 12: zero 12
//	  op 0          announce: nothing follows
//	  op 1          map: 24: nonce 12 | 36: 17 (UDP) | 37: zero 3 | 40: internal port 2 |
//	                42: external port 2 | 44: external address 16
//	NAT-PMP request 0: 0 | 1: op; op 1 (map UDP): 2: zero 2 | 4: internal port 2 |
//	                6: external port 2 | 8: lifetime 4
//	NAT-PMP answer  0: 0 | 1: op+128 | 2: result 2 | 4: epoch 4
//	  op 0          8: external address 4
//	  op 1          8: internal port 2 | 10: external port 2 | 12: lifetime 4
//
// IPv4 addresses are mapped ones in PCP. A router that speaks only NAT-PMP
// answers a PCP request with version 0 and result 1.
const (
	versionNATPMP = 0
	versionPCP    = 2

	opAnnounce = 0 // PCP
	opAddress  = 0 // NAT-PMP
	opMap      = 1
	opAnswer   = 128

	pcpHeader   = 24
	pcpMapSize  = pcpHeader + 36
	pcpMost     = 1100 // RFC 6887, section 7: no message is longer
	natpmpLeast = 8    // an answer that is an error may end there
	protocolUDP = 17

	resultVersion = 1 // of both: the version is not supported
)

// nonce names a mapping as ours (RFC 6887, section 11.2).
type nonce [12]byte

// answer is what a router says in either protocol.
type answer struct {
	op       byte
	result   int
	epoch    uint32
	lifetime time.Duration
	internal uint16
	external netip.AddrPort // the port is 0 in answers to opAddress, the address unset in NAT-PMP's to opMap
	nonce    nonce
}

var errWire = errors.New("malformed answer")

// appendPCP appends a request of the client; m is nil for an announce.
func appendPCP(b []byte, client netip.Addr, m *pcpMap) []byte {
	op, lifetime := byte(opAnnounce), time.Duration(0)
	if m != nil {
		op, lifetime = opMap, m.lifetime
	}
	b = append(b, versionPCP, op, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(lifetime/time.Second))
	ip := client.As16()
	b = append(b, ip[:]...)
	if m == nil {
		return b
	}
	b = append(b, m.nonce[:]...)
	b = append(b, protocolUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.internal)
	b = binary.BigEndian.AppendUint16(b, m.external.Port())
	ip = netip.IPv4Unspecified().As16()
	if a := m.external.Addr(); a.IsValid() {
		ip = a.As16()
	}
	return append(b, ip[:]...)
}

// pcpMap is a request for a mapping, or with lifetime 0 for its end.
type pcpMap struct {
	nonce    nonce
	lifetime time.Duration
	internal uint16
	external netip.AddrPort // the one to give, if it is free; the zero value: any
}

// parsePCP reads an answer of version 2.
func parsePCP(b []byte) (answer, error) {
	if len(b) < pcpHeader || len(b) > pcpMost || len(b)%4 != 0 || b[0] != versionPCP || b[1] < opAnswer {
		return answer{}, errWire
	}
	a := answer{
		op:       b[1] - opAnswer,
		result:   int(b[3]),
		lifetime: time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second,
		epoch:    binary.BigEndian.Uint32(b[8:]),
	}
	if a.op != opMap {
		return a, nil
	}
	if len(b) < pcpMapSize || b[36] != protocolUDP {
		return answer{}, errWire
	}
	a.nonce = nonce(b[24:])
	a.internal = binary.BigEndian.Uint16(b[40:])
	a.external = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[44:])).Unmap(), binary.BigEndian.Uint16(b[42:]))
	return a, nil
}

// appendNATPMP appends a request for a mapping, or with lifetime 0 for its end.
func appendNATPMP(b []byte, internal, external uint16, lifetime time.Duration) []byte {
	b = append(b, versionNATPMP, opMap, 0, 0)
	b = binary.BigEndian.AppendUint16(b, internal)
	b = binary.BigEndian.AppendUint16(b, external)
	return binary.BigEndian.AppendUint32(b, uint32(lifetime/time.Second))
}

// parseNATPMP reads an answer of version 0.
func parseNATPMP(b []byte) (answer, error) {
	if len(b) < natpmpLeast || b[0] != versionNATPMP || b[1] < opAnswer {
		return answer{}, errWire
	}
	a := answer{op: b[1] - opAnswer, result: int(binary.BigEndian.Uint16(b[2:])), epoch: binary.BigEndian.Uint32(b[4:])}
	switch {
	case a.result != 0:
	case a.op == opAddress && len(b) == 12:
		a.external = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[8:])), 0)
	case a.op == opMap && len(b) == 16:
		a.internal = binary.BigEndian.Uint16(b[8:])
		a.external = netip.AddrPortFrom(netip.Addr{}, binary.BigEndian.Uint16(b[10:]))
		a.lifetime = time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Second
	default:
		return answer{}, errWire
	}
	return a, nil
}

// pcpResults are the words for PCP's result codes (RFC 6887, section 7.4).
var pcpResults = []string{"", "unsupported version", "not authorized", "malformed request", "unsupported opcode",
	"unsupported option", "malformed option", "network failure", "no resources", "unsupported protocol",
	"too many mappings", "cannot give that address", "address mismatch", "too many peers"}

// natpmpResults are those of NAT-PMP (RFC 6886, section 3.5).
var natpmpResults = []string{"", "unsupported version", "not authorized", "network failure", "out of resources", "unsupported opcode"}

// refusal is an answer that says no.
type refusal struct {
	by   Protocol
	code int
	text string
}

func (r refusal) Error() string {
	return fmt.Sprintf("%s: the router refused: %s (%d)", r.by, r.text, r.code)
}

// refused makes an error of a result code; nil for success. A router that does
// not speak the version is no better than one that does not answer.
func refused(by Protocol, code int) error {
	switch {
	case code == 0:
		return nil
	case code == resultVersion:
		return fmt.Errorf("%s: %w", by, errSilent)
	}
	words := pcpResults
	if by == NATPMP {
		words = natpmpResults
	}
	text := "unknown reason"
	if code < len(words) {
		text = words[code]
	}
	return refusal{by, code, text}
}
