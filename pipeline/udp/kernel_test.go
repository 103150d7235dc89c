package udp

import "testing"

func TestRelease(t *testing.T) {
	tests := []struct {
		name         string
		want         release
		segment, gro bool
	}{
		{"6.18.44-arch1", release{6, 18, 44}, true, true},
		{"7.0.0", release{7, 0, 0}, false, true},
		{"7.1-rc3", release{7, 1, 0}, false, true},
		{"7.1.4-200.fc45.x86_64", release{7, 1, 4}, false, true},
		{"7.1.5", release{7, 1, 5}, true, true},
		{"7.2.0", release{7, 2, 0}, true, true},
		{"5.11.22", release{5, 11, 22}, true, false},
		{"5.12.0", release{5, 12, 0}, true, true},
		{"4.19.0-27-amd64", release{4, 19, 0}, true, false},
		{"", release{}, true, false},
		{"x.y", release{}, true, false},
		{"10", release{10, 0, 0}, true, true},
		{"1.2.3.4.5", release{1, 2, 3}, true, false},
	}
	for _, test := range tests {
		r := parseRelease(test.name)
		if r != test.want || r.trustSegment() != test.segment || r.trustGRO() != test.gro {
			t.Errorf("%q: %v segment %t GRO %t", test.name, r, r.trustSegment(), r.trustGRO())
		}
	}
}
