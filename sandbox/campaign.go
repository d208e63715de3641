package sandbox

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// EngagementEvents are the 20 events CleverTap exports as engagement
// (https://docs.clevertap.com/docs/mixpanel-export).
var EngagementEvents = []string{
	"Notification Sent", "Notification Viewed", "Notification Clicked", "Push Impressions", "Notification Replied", "Push Unregistered", "Control Group",
	"Channel Unsubscribed", "Reachable By", "Notification Delivered", "AB Experiment Rendered", "AB Experiment Stopped", "AB Experiment Rolled Out",
	"Geocluster Entered", "Geocluster Exited", "Reply Sent", "App Uninstalled", "Webhook Delivered", "State Transitioned", "UTM Visited",
}

// Campaign asks the sandbox to play CleverTap's export after a campaign: the
// engagement events of a segment's members, sent to Mixpanel's /import as it
// stands at ImportURL.
type Campaign struct {
	// Segment is the sandbox's id of the segment.
	Segment int64 `json:"segment"`
	// Name of the campaign.
	Name string `json:"name"`
	// ImportURL is the full URL, e.g. http://127.0.0.1:8080/import.
	ImportURL string `json:"import_url"`
	// ProjectID is the target project's number.
	ProjectID string `json:"project_id"`
	// Username and Secret are a service account's.
	Username string `json:"username"`
	// Secret is the service account's secret.
	Secret string `json:"secret"`
	// Source is sent as `$source`; default clevertap.
	Source string `json:"source"`
	// Events to send for each member; default EngagementEvents.
	Events []string `json:"events"`
}

// CampaignResult says what was sent.
type CampaignResult struct {
	// Members of the segment.
	Members int `json:"members"`
	// Events acknowledged.
	Events int `json:"events"`
	// Skipped are members without an identity.
	Skipped int `json:"skipped"`
	// Batches sent.
	Batches int `json:"batches"`
}

// campaignBatch is how many events travel in one call.
const campaignBatch = 500

func (s *Sandbox) postCampaign(w http.ResponseWriter, r *http.Request) {
	var c Campaign
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&c); err != nil {
		writeJSON(w, 400, map[string]any{"error": "body: " + err.Error()})
		return
	}
	res, err := s.run(r.Context(), c)
	if err != nil {
		writeJSON(w, 502, map[string]any{"error": err.Error(), "result": res})
		return
	}
	writeJSON(w, 200, res)
}

func (s *Sandbox) run(ctx context.Context, c Campaign) (CampaignResult, error) {
	var res CampaignResult
	if c.Source == "" {
		c.Source = "clevertap"
	}
	if c.Events == nil {
		c.Events = EngagementEvents
	}
	u, err := url.Parse(c.ImportURL)
	if err != nil || u.Host == "" {
		return res, fmt.Errorf("import_url: want an absolute URL")
	}
	q := u.Query()
	q.Set("strict", "1")
	q.Set("project_id", c.ProjectID)
	u.RawQuery = q.Encode()
	var members []string
	for _, id := range s.order {
		a := s.accounts[id]
		a.mu.Lock()
		for _, seg := range a.segments {
			if seg.ID == c.Segment {
				members = sortedKeys(seg.Members)
			}
		}
		a.mu.Unlock()
	}
	if members == nil {
		return res, fmt.Errorf("segment: no segment %d", c.Segment)
	}
	now := s.now()
	var batch []map[string]any
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		n, err := s.send(ctx, u.String(), c, batch)
		res.Events, res.Batches, batch = res.Events+n, res.Batches+1, nil
		return err
	}
	for i, id := range members {
		if id == "" {
			res.Skipped++
			continue
		}
		res.Members++
		for j, name := range c.Events {
			batch = append(batch, map[string]any{"event": name, "properties": map[string]any{
				"time": now.Add(-time.Duration(i*len(c.Events)+j) * time.Millisecond).UnixMilli(), "distinct_id": id, "$insert_id": uuid(), "$source": c.Source,
				"Campaign id": strconv.FormatInt(c.Segment, 10), "Campaign name": c.Name, "Campaign type": "Email",
			}})
			if len(batch) == campaignBatch {
				if err := flush(); err != nil {
					return res, err
				}
			}
		}
	}
	return res, flush()
}

const campaignTries = 6

// send imports one batch. A repeated batch keeps its insert ids, so the receiver
// counts it once.
func (s *Sandbox) send(ctx context.Context, target string, c Campaign, batch []map[string]any) (int, error) {
	raw, err := json.Marshal(batch)
	if err != nil {
		return 0, err
	}
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(raw); err != nil {
		return 0, err
	}
	if err := zw.Close(); err != nil {
		return 0, err
	}
	for try := 0; ; try++ {
		n, again, err := s.sendOnce(ctx, target, c, zipped.Bytes())
		if err == nil || !again || try == campaignTries-1 {
			return n, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Duration(1<<try) * 200 * time.Millisecond):
		}
	}
}

func (s *Sandbox) sendOnce(ctx context.Context, target string, c Campaign, zipped []byte) (n int, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(zipped))
	if err != nil {
		return 0, false, err
	}
	req.SetBasicAuth(c.Username, c.Secret)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Content-Encoding", "gzip")
	req.Header.Set("X-Mixpanel-Integration-ID", c.Source)
	resp, err := s.campaign.Do(req)
	if err != nil {
		return 0, true, fmt.Errorf("import_url: no answer")
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, true, err
	}
	var answer struct {
		Imported int    `json:"num_records_imported"`
		Error    string `json:"error"`
	}
	_ = json.Unmarshal(body, &answer) // a body that is no JSON is told by its status below
	if resp.StatusCode != http.StatusOK {
		return answer.Imported, resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500, fmt.Errorf("import answered HTTP %d: %s", resp.StatusCode, answer.Error)
	}
	return answer.Imported, false, nil
}

// uuid is a version 4 UUID.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
