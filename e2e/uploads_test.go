package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

func TestACSVOfAnySizeIsUploadedOverREST(t *testing.T) {
	p := harness.Standalone(t, t.TempDir())
	c := p.Client(t)
	name := c.Cohort(t, "Listed", &typev1.Expression{Node: &typev1.Expression_Ids{Ids: &typev1.IdsLeaf{}}})
	path := "/v1/" + name + ":uploadIds"
	csv := map[string]string{"Content-Type": "text/csv"}
	upload := func(query, body string) *cohortsyncv1.UploadIdsResponse {
		t.Helper()
		out := &cohortsyncv1.UploadIdsResponse{}
		a := c.MustDo(t, "POST", path+query, []byte(body), csv)
		var m struct {
			Lines, Users, Total, Refused json.Number
		}
		if err := json.Unmarshal(a.Body, &m); a.Status != 200 || err != nil {
			t.Fatalf("HTTP %d %s %v", a.Status, a.Body, err)
		}
		for to, from := range map[*int64]json.Number{&out.Lines: m.Lines, &out.Users: m.Users, &out.Total: m.Total, &out.Refused: m.Refused} {
			*to, _ = from.Int64()
		}
		return out
	}
	c.People(t, "up", 0, 3, "plan", "pro")
	if got := upload("", "\ufeffdistinct_id,plan\nup-0,pro\nup-1,pro\nup-9,pro\n,pro\n"); got.GetLines() != 4 || got.GetTotal() != 3 || got.GetRefused() != 1 {
		t.Errorf("first upload: %v", got)
	}
	if got := upload("?mode=ADD", "distinct_id\nup-2\n"); got.GetTotal() != 4 {
		t.Errorf("ADD: %v", got)
	}
	if got := upload("?mode=mode_remove", "distinct_id\nup-0\n"); got.GetTotal() != 3 {
		t.Errorf("REMOVE: %v", got)
	}
	members := func() string {
		a := c.MustDo(t, "GET", "/v1/"+name+"/members", nil, nil)
		return string(a.Body)
	}
	if got := members(); !strings.Contains(got, `"up-1"`) || !strings.Contains(got, `"up-9"`) || strings.Contains(got, `"up-0"`) || strings.Count(got, `"identified":true`) != 2 {
		t.Errorf("members: %s", got)
	}
	// Somebody who was uploaded first, and is heard of later, is the same user.
	c.People(t, "up", 9, 10, "plan", "pro")
	if got := members(); strings.Count(got, `"identified":true`) != 3 {
		t.Errorf("members after a profile of an uploaded id: %s", got)
	}
	refusedREST(t, "wrong mode", c.MustDo(t, "POST", path+"?mode=MERGE", []byte("distinct_id\n"), csv), 400, "REPLACE")
	refusedREST(t, "wrong column", c.MustDo(t, "POST", path, []byte("user\na\n"), csv), 400, "distinct_id")
	refusedREST(t, "no body", c.MustDo(t, "POST", path, nil, csv), 400, "empty")
	refusedREST(t, "a form", c.MustDo(t, "POST", path, []byte("--x"), map[string]string{"Content-Type": "multipart/form-data; boundary=x"}), 400, "--data-binary")
	refusedREST(t, "unknown cohort", c.MustDo(t, "POST", strings.Replace(path, "/cohorts/", "/cohorts/99", 1), []byte("distinct_id\na\n"), csv), 404, "")
	refusedREST(t, "no credential", c.MustDo(t, "POST", path, []byte("distinct_id\na\n"), map[string]string{"Authorization": ""}), 401, "")
	before := members()

	// A body that breaks off is no short list.
	conn, err := net.Dial("tcp", p.Creds.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Type: text/csv\r\nContent-Length: 1000\r\n\r\ndistinct_id\nup-5\n", path, "Basic "+base64.StdEncoding.EncodeToString([]byte(p.Creds.ServiceAccount+":"+p.Creds.ServiceSecret)))
	if err != nil {
		t.Fatal(err)
	}
	tcp, _ := conn.(*net.TCPConn)
	if err := tcp.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") || !strings.Contains(string(answer), "broke off") {
		t.Errorf("half a body: %v %s", err, answer)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	var big strings.Builder
	big.WriteString("distinct_id\n")
	for i := range 300_000 {
		fmt.Fprintf(&big, "somebody-with-a-long-name-who-comes-again-and-again-and-again-%d\n", i%1000)
	}
	if big.Len() < 17<<20 {
		t.Fatal("not larger than other bodies may be")
	}
	if got := members(); got != before {
		t.Errorf("half a body changed the members:\n%s\n%s", before, got)
	}
	if got := upload("", big.String()); got.GetLines() != 300_000 || got.GetTotal() != 1000 {
		t.Errorf("18 MB: %v", got)
	}
}
