package signal

import (
	"slices"
	"strings"
)

// MaxName is the most bytes of a node's name.
const MaxName = 63

// ValidName reports whether name can be a node's: a DNS label (RFC 1123, section 2.1) in lower case. Such a name is also a
// single token of a subject, without wildcards.
func ValidName(name string) bool {
	if len(name) == 0 || len(name) > MaxName || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// ValidVerb reports whether verb can be the last part of a request to the portal: one or more labels with dots between.
func ValidVerb(verb string) bool {
	labels := strings.Split(verb, ".")
	return len(labels) <= 4 && !slices.ContainsFunc(labels, func(l string) bool { return !ValidName(l) })
}

// InboxPrefix is what the subjects of a node's private inbox begin with, without the dot that follows. Who answers a
// request checks that the reply subject begins with the inbox of the node that asked, or the answer could be
// steered to another node.
func InboxPrefix(name string) string { return "_INBOX_" + name }

// PortalSubject is where a node's request to the portal is published. The portal subscribes portal.*.<verb> and knows the
// node from the second token.
func PortalSubject(name, verb string) string { return "portal." + name + "." + verb }

func messageSubject(to, from string) string { return "sig." + to + "." + from }

// sender returns the name in a subject of the form sig.<self>.<from>.
func sender(subject, self string) (from string, ok bool) {
	from, ok = strings.CutPrefix(subject, messageSubject(self, ""))
	return from, ok && ValidName(from) && from != self
}

// ackPrefix begins the subjects by which from confirms the messages of to.
func ackPrefix(to, from string) string { return InboxPrefix(to) + ".ack." + from + "." }

// validAck reports whether reply is a place where self may confirm a message of from.
func validAck(reply, from, self string) bool {
	id, ok := strings.CutPrefix(reply, ackPrefix(from, self))
	return ok && len(id) <= 20 && ValidName(id)
}

// Permissions is the set of subjects that the node self gets from a broker, its peers being the nodes that it may exchange
// messages with. Everything that publish and subscribe do not list is forbidden; denied stands beside them in case that a
// broker's defaults are wider. The node needs no permission to answer on reply subjects, and must not get it: see
// the package comment. Names that are not valid are left out; without a valid self all is denied.
func Permissions(self string, peers []string) (publish, subscribe, denied []string) {
	if !ValidName(self) {
		return nil, nil, []string{">"}
	}
	publish = []string{PortalSubject(self, ">")}
	for _, peer := range peers {
		if ValidName(peer) && peer != self {
			publish = append(publish, messageSubject(peer, self), ackPrefix(peer, self)+"*")
		}
	}
	subscribe = []string{messageSubject(self, ">"), InboxPrefix(self) + ".>"}
	return publish, subscribe, []string{"$JS.>", "$KV.>", "$SYS.>", "$O.>", "$MQTT.>", "$SRV.>"}
}
