package harness

import "testing"

func TestTheSearchFindsSecretsAndAddressesAndReadsAllOfIt(t *testing.T) {
	secrets := map[string]string{"hunter2": "passcode"}
	for text, want := range map[string]int{
		`{"msg":"hunter2"}`:           1,
		"mail to a.b+c@example.org":   1,
		"?email=someone%40shop.net":   1,
		"hunter2 of a@b.com":          2,
		"hunter1, user@host, a at b.": 0,
	} {
		b := &captureBuffer{name: "x"}
		_, _ = b.Write([]byte(text))
		leaks, total := search([]*captureBuffer{b}, secrets)
		if len(leaks) != want || total != len(text) {
			t.Errorf("%q: %v of %d bytes, want %d finds", text, leaks, total, want)
		}
	}
}
