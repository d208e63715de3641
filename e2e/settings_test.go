package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

func TestLimitsOfSendersAreSetByFlag(t *testing.T) {
	c := harness.Standalone(t, t.TempDir(), "--max-body-bytes", "4096", "--max-decompressed-bytes", "2048", "--queue-depth", "2000", "--body-timeout", "500ms").Client(t)
	path := "/import?strict=1&project_id=" + c.Creds.ProjectID
	body := func(n int) []byte { return []byte("[" + strings.Repeat(" ", n-2) + "]") }
	gzip := map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"}
	for _, tc := range []struct {
		what  string
		body  []byte
		head  map[string]string
		limit string
	}{
		{"fits", body(2048), harness.JSONHead, ""},
		{"fits, compressed", zipped(t, body(2048)), gzip, ""},
		{"larger than after decompression", body(2049), harness.JSONHead, "2048"},
		{"larger when decompressed", zipped(t, body(2049)), gzip, "2048"},
		{"larger as sent", body(4097), harness.JSONHead, "4096"},
	} {
		a := c.MustDo(t, http.MethodPost, path, tc.body, tc.head)
		if tc.limit == "" && a.Status != 200 || tc.limit != "" && (a.Status != 413 || !strings.Contains(string(a.Body), tc.limit+" bytes")) {
			t.Errorf("%s: HTTP %d %s, want a limit of %q", tc.what, a.Status, a.Body, tc.limit)
		}
	}

	conn, err := (&net.Dialer{Timeout: time.Minute}).DialContext(t.Context(), "tcp", c.Creds.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // whatever the server did with it
	if _, err := fmt.Fprintf(conn, "POST /track HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n["); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // not read
	if resp.StatusCode != 503 {
		t.Errorf("a body that stalls: HTTP %d", resp.StatusCode)
	}
}

func TestASettingThatCantWorkIsNamed(t *testing.T) {
	for flag, values := range map[string][]string{
		"max-body-bytes": {"10", "100000000"}, "max-decompressed-bytes": {"10", "300000000"}, "max-concurrent": {"0"}, "max-in-flight-bytes": {"0"}, "body-timeout": {"0s", "-1s"},
		"queue-depth": {"100"}, "project-events-per-minute": {"-1"}, "project-bytes-per-minute": {"-1"},
		"query-per-hour": {"-1"}, "query-concurrent": {"-1"}, "export-per-hour": {"-1"}, "export-per-second": {"-1"}, "export-concurrent": {"-1"},
	} {
		for _, value := range values {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // one that is taken would serve
			out, err := exec.CommandContext(ctx, harness.Binary(t), "standalone", "--data-dir", t.TempDir(), "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--"+flag+"="+value).CombinedOutput()
			cancel()
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if last := lines[len(lines)-1]; err == nil || !strings.Contains(last, strings.ReplaceAll(flag, "-", "_")+": ") {
				t.Errorf("--%s=%s: %v, %s", flag, value, err, last)
			}
		}
	}
}
