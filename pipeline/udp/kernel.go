package udp

// release is a kernel's version, parsed from uname.
type release struct{ major, minor, patch int }

// parseRelease reads the leading numbers of a string such as "6.18.4-arch1"; what is missing is 0.
func parseRelease(s string) release {
	var parts [3]int
	i := 0
	for _, c := range []byte(s) {
		if c >= '0' && c <= '9' && parts[i] < 1<<20 {
			parts[i] = parts[i]*10 + int(c-'0')
			continue
		}
		if i++; c != '.' || i == len(parts) {
			break
		}
	}
	return release{parts[0], parts[1], parts[2]}
}

// before tells whether r is older than o.
func (r release) before(o release) bool {
	if r.major != o.major {
		return r.major < o.major
	}
	if r.minor != o.minor {
		return r.minor < o.minor
	}
	return r.patch < o.patch
}

// trustSegment says whether UDP_SEGMENT may be used. Linux 7.0 to 7.1.4 damages a run whose last datagram is as long as
// the others (commit b10b446), with no error to see, so that no probe on the sending side can find it: that is why a
// version decides. Config.ForceSegment overrides.
func (r release) trustSegment() bool {
	return r.before(release{7, 0, 0}) || !r.before(release{7, 1, 5})
}

// trustGRO says whether UDP_GRO may be used: before 5.12 it has faults that a probe cannot see either.
func (r release) trustGRO() bool { return !r.before(release{5, 12, 0}) }
