package nat

import (
	"slices"
	"strings"
)

// With the nft backend, iptables makes tables and their built-in chains when
// they are first used, and never removes the tables. So we note what there was
// before, and remove what nobody uses in the end.

// kindTable is the kind of our notes in the journal; the key is a table's name,
// the old value what nftChains.String says of it.
const kindTable = "nftables"

// absent is the old value of a table that did not exist.
const absent = "absent"

// builtIn are the chains that iptables makes.
var builtIn = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// nftChain is a chain of nftables.
type nftChain struct {
	name string
	base bool // it has a hook, as iptables' built-in chains have
	// used counts what would be lost with it: rules, jumps from elsewhere, and a
	// policy other than accept.
	used bool
}

// nftTables is the tables of nftables' family ip and the chains they have.
type nftTables map[string][]nftChain

// describe returns what to note of a table before it is used.
func (n nftTables) describe(table string) string {
	chains, ok := n[table]
	if !ok {
		return absent
	}
	names := []string{"chains"}
	for _, c := range chains {
		names = append(names, c.name)
	}
	return strings.Join(names, " ")
}

// leftover returns what of a table is there only because of us and of no use to
// anybody: base chains, and the table if there would be nothing left in it.
func (n nftTables) leftover(table, described string) (chains []string, whole bool) {
	before := strings.Fields(described)
	if len(before) == 0 {
		return nil, false
	}
	for _, c := range n[table] {
		if c.base && !c.used && slices.Contains(builtIn, c.name) && !slices.Contains(before[1:], c.name) {
			chains = append(chains, c.name)
		}
	}
	_, there := n[table]
	return chains, there && described == absent && len(chains) == len(n[table])
}
