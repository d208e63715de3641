package sandbox

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// BenchmarkPartnerPage is one page of 1,000 members; what it costs is taken from
// the machine that measures deliveries.
func BenchmarkPartnerPage(b *testing.B) {
	s, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	pages := make([]string, 50)
	for p := range pages {
		var ids []string
		for i := range maxMembers {
			ids = append(ids, fmt.Sprintf("user-%d-%d", p, i))
		}
		pages[p] = message("add_members", "", 1, 1, ids...)
	}
	b.ResetTimer()
	for i := range b.N {
		req := httptest.NewRequestWithContext(b.Context(), http.MethodPost, partnerPath, strings.NewReader(pages[i%len(pages)]))
		req.Header.Set("X-CleverTap-Account-Id", DefaultAccountID)
		req.Header.Set("X-CleverTap-Passcode", DefaultPasscode)
		rec := httptest.NewRecorder()
		s.Handler().ServeHTTP(rec, req)
		if rec.Code != http.StatusOK {
			b.Fatal(rec.Body)
		}
	}
	b.ReportMetric(float64(b.N)*maxMembers/b.Elapsed().Seconds(), "members/s")
}
