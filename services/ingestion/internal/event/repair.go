package event

import "bytes"

// Repair replaces escaped halves of surrogate pairs ("\ud83d" alone) by U+FFFD.
// Browsers send them: the SDK cuts texts at 255 UTF-16 units. Stored as they are,
// no strict JSON reader would take the event again, the warehouse's included.
// Text without any is returned as it is; else a changed copy.
func Repair(b []byte) []byte {
	if !bytes.Contains(b, []byte(`\ud`)) && !bytes.Contains(b, []byte(`\uD`)) {
		return b
	}
	b = bytes.Clone(b)
	for i := 0; i+1 < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		switch half(b[i:]) {
		case high:
			if half(b[i+6:]) == low {
				i += 11
				continue
			}
			copy(b[i:], `\ufffd`)
		case low:
			copy(b[i:], `\ufffd`)
		default:
		}
		i++ // the escaped character is no escape itself
	}
	return b
}

const (
	high = 1
	low  = 2
)

// half says which half of a surrogate pair b begins with, 0 for neither.
func half(b []byte) int {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' || b[2] != 'd' && b[2] != 'D' {
		return 0
	}
	switch b[3] {
	case '8', '9', 'a', 'b', 'A', 'B':
		return high
	case 'c', 'd', 'e', 'f', 'C', 'D', 'E', 'F':
		return low
	default:
		return 0
	}
}
