// Package nat makes our iptables chains match a [Ruleset].
package nat
