package owner

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// find looks for a socket in a table of /proc/net (proc_net_tcp in the kernel's
// documentation). One for datagrams may have no address of its own and no other
// end.
func find(r io.Reader, datagrams bool, client, server netip.AddrPort) (uid int, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 10 {
			continue
		}
		at, ok1 := parseEnd(words[1])
		to, ok2 := parseEnd(words[2])
		if !ok1 || !ok2 || !matches(at, client, datagrams) || at.Port() != client.Port() || !matches(to, server, datagrams) {
			continue
		}
		uid, err := strconv.ParseUint(words[7], 10, 31)
		if err != nil || words[9] == "0" {
			return 0, errNobody
		}
		return int(uid), nil
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, errNobody
}

// matches reports whether the end of a socket is that address with its port. One
// without an address may be any, with free; one without a port, too, is none yet.
func matches(end, want netip.AddrPort, free bool) bool {
	if free && end.Addr().IsUnspecified() {
		return end.Port() == 0 || end.Port() == want.Port()
	}
	return end == want
}

// parseEnd reads an address with a port: words of 4 bytes in the machine's order,
// in hexadecimal digits, and the port's number in them.
func parseEnd(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), true
}
