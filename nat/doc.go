// Package nat makes our iptables chains match a [Ruleset], and leaves no trace
// when they are cleared.
//
// Members of the overlay reach the LANs of the Ruleset with this machine's
// address there, and get the answers. Nothing else passes through the tunnel,
// no other network of this machine reaches a member, and no LAN this machine by its
// overlay address.
// Packets that have nothing to do with the tunnel or the overlay pass our chains
// untouched. The segment size of TCP is clamped in both directions, as the
// tunnel's packets are smaller than the LAN's.
//
// # Beside others
//
// Our chains (OVL-*) are jumped to from the first place of the built-in ones,
// before a policy of DROP, Docker's and ufw's chains get to say no. Others put
// themselves first when they restart; [Tables.Apply] then moves our jump back,
// without a moment when there is none. Apply reads everything with one
// iptables-save and changes only what differs; it is meant to be called often.
// Rules of others are never touched, nor is any policy. A firewall that drops in
// nftables tables of its own, as firewalld's can, has its say whatever we accept.
//
// It is iptables that is used, whichever of its backends that is, so that Docker
// and we see the same rules.
//
// # Leaving no trace
//
// With the nft backend, iptables makes a table on first use and never removes
// it. What there was is noted in the [Journal] before; [Tables.Clear] removes the
// built-in chains and tables that are there only because of us, if they are
// empty. The kernel checks that in the same step, so a rule that somebody adds
// meanwhile is safe.
//
// With the legacy backend an empty table stays in the kernel until its module is
// unloaded, which we must not do, as other namespaces may use it. On a machine
// whose legacy tables were never used, iptables-save lists them empty afterwards.
package nat
