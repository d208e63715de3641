package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// JSONHead is the header of a JSON body.
var JSONHead = map[string]string{"Content-Type": "application/json"}

// FastRetries keep the pauses of a delivery short: the sandbox's refusals are
// random, so time heals nothing.
var FastRetries = []string{"--retry-initial", "20ms", "--retry-window", "20s"}

// Exported is an event as the raw export shows it.
type Exported struct {
	Event      string         `json:"event"`
	Properties map[string]any `json:"properties"`
}

// Export reads events back through the export in Mixpanel's shape, by name: all of
// them, or those of the given names.
func (c *Client) Export(t testing.TB, names ...string) []Exported {
	t.Helper()
	now := time.Now().UTC()
	path := "/api/2.0/export?project_id=" + c.Creds.ProjectID + "&from_date=" + now.AddDate(0, 0, -80).Format(time.DateOnly) + "&to_date=" + now.AddDate(0, 0, 1).Format(time.DateOnly)
	if len(names) > 0 {
		list, err := json.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		path += "&event=" + url.QueryEscape(string(list))
	}
	a := c.MustDo(t, http.MethodGet, path, nil, nil)
	if a.Status != http.StatusOK {
		t.Fatalf("export: HTTP %d: %s", a.Status, a.Body)
	}
	var out []Exported
	for line := range bytes.Lines(a.Body) {
		var e Exported
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, e)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Event < out[j].Event })
	return out
}

// Names are the events' names.
func Names(events []Exported) []string {
	var out []string
	for _, e := range events {
		out = append(out, e.Event)
	}
	return out
}

// Profile reads a profile back through the profile API.
func (c *Client) Profile(t testing.TB, id string) map[string]any {
	t.Helper()
	resp, err := c.Data().GetProfile(t.Context(), &ingestionv1.GetProfileRequest{Parent: c.Project, DistinctId: id})
	if err != nil {
		t.Fatalf("profile of %s: %v", id, err)
	}
	return resp.GetProfile().GetProperties().AsMap()
}

// Expect is the identifiers prefix-from to prefix-(to-1).
func Expect(prefix string, from, to int) map[string]bool {
	out := map[string]bool{}
	for i := from; i < to; i++ {
		out[prefix+"-"+strconv.Itoa(i)] = true
	}
	return out
}

// People writes profiles with an e-mail address, a phone and a segment property.
func (c *Client) People(t testing.TB, prefix string, from, to int, property, value string) {
	t.Helper()
	var b strings.Builder
	for i := from; i < to; i++ {
		if b.Len() == 0 {
			b.WriteByte('[')
		} else {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"$token":%q,"$distinct_id":"%s-%d","$ip":"0","$set":{"$email":"%s-%d@example.org","$phone":"+9198%08d","$first_name":"F","%s":%q}}`, c.Creds.ProjectToken, prefix, i, prefix, i, i, property, value)
		if (i+1-from)%1000 == 0 || i == to-1 {
			b.WriteByte(']')
			a := c.MustDo(t, http.MethodPost, "/engage", []byte(b.String()), map[string]string{"Content-Type": "application/json"})
			if string(a.Body) != "1" {
				t.Fatalf("/engage: HTTP %d %s", a.Status, a.Body)
			}
			b.Reset()
		}
	}
}

// Group reads a group's profile back through the profile API.
func (c *Client) Group(t testing.TB, key, id string) map[string]any {
	t.Helper()
	resp, err := c.Data().GetGroupProfile(t.Context(), &ingestionv1.GetGroupProfileRequest{Parent: c.Project, GroupKey: key, GroupId: id})
	if err != nil {
		t.Fatalf("profile of %s %s: %v", key, id, err)
	}
	return resp.GetGroupProfile().GetProperties().AsMap()
}

// NoProfile fails the test when the user has a profile.
func (c *Client) NoProfile(t testing.TB, id string) {
	t.Helper()
	if _, err := c.Data().GetProfile(t.Context(), &ingestionv1.GetProfileRequest{Parent: c.Project, DistinctId: id}); status.Code(err) != codes.NotFound {
		t.Errorf("profile of %s: %v, want NotFound", id, err)
	}
}

// NoGroup fails the test when the group has a profile.
func (c *Client) NoGroup(t testing.TB, key, id string) {
	t.Helper()
	if _, err := c.Data().GetGroupProfile(t.Context(), &ingestionv1.GetGroupProfileRequest{Parent: c.Project, GroupKey: key, GroupId: id}); status.Code(err) != codes.NotFound {
		t.Errorf("profile of %s %s: %v, want NotFound", key, id, err)
	}
}

// SameProperties compares properties with what is wanted, which is all there may
// be besides $last_seen.
func SameProperties(t testing.TB, what string, got, want map[string]any) {
	t.Helper()
	got = maps.Clone(got)
	if _, asked := want["$last_seen"]; !asked {
		delete(got, "$last_seen")
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s has %v, want %v", what, got, want)
	}
}

// IDs are the distinct ids of the events, in their order.
func IDs(events []Exported) []any {
	var out []any
	for _, e := range events {
		out = append(out, e.Properties["distinct_id"])
	}
	return out
}
