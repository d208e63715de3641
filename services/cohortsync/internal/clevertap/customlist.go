package clevertap

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
)

// ListHeader is the first line of a custom list file.
const ListHeader = "Type,Identity\n"

// ListUploadURL asks for a URL to put a custom list file to. It is good for a
// good hour; never show it, its query is the permission to write.
func (c *Client) ListUploadURL(ctx context.Context, a Account) (string, error) {
	raw, status, err := c.call(ctx, a, http.MethodPost, a.BaseURL+"/get_custom_list_segment_url", []byte{})
	if err != nil {
		return "", err
	}
	var ans struct {
		answer
		URL string `json:"presignedS3URL"`
	}
	if err := decode(raw, status, &ans); err != nil {
		return "", err
	}
	if ans.Status != "success" || ans.URL == "" {
		msg := clean(ans.text(), a)
		if msg == "" {
			msg = "no upload URL was given"
		}
		// The documented failure says "please come back later".
		return "", &Error{Class: Transient, Status: status, Code: int(ans.Code), Message: msg}
	}
	return ans.URL, nil
}

// PutList puts a file of size bytes to a URL of ListUploadURL. A 403 comes as
// class StaleURL: ask for a new URL and put again.
func (c *Client) PutList(ctx context.Context, url string, file io.Reader, size int64, contentType string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, io.NopCloser(file))
	if err != nil {
		return &Error{Class: Refused, Message: "the upload URL can't be called"}
	}
	// A single PUT to S3 needs the length; a signature covers the content type,
	// so none is sent unless asked.
	req.ContentLength = size
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.plain.Do(req)
	if err != nil {
		return noAnswer(err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing in it matters
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode == http.StatusForbidden:
		return &Error{Class: StaleURL, Status: resp.StatusCode, Message: "the upload URL is expired or was refused"}
	default:
		return statusError(resp.StatusCode, nil, Account{})
	}
}

// List is what step 3 of a custom list says.
type List struct {
	// Name is the segment's, up to 100 characters.
	Name string
	// Filename is shown on the dashboard.
	Filename string
	// Creator is the display name of the uploader.
	Creator string
	// URL is the one the file was put to.
	URL string
}

// CompleteList announces that the file is there, replacing the list's earlier
// content, and returns CleverTap's segment id (0 when it gave none).
// Acceptance is all that is known: the list is processed later, and the result
// is mailed to the account's admin.
func (c *Client) CompleteList(ctx context.Context, a Account, l List) (int64, error) {
	body, err := json.Marshal(map[string]any{
		"name": l.Name, "email": a.AdminEmail, "filename": l.Filename, "creator": l.Creator, "url": l.URL, "replace": true,
	})
	if err != nil {
		return 0, &Error{Class: Refused, Message: "the list's description can't be written", cause: err}
	}
	raw, status, err := c.call(ctx, a, http.MethodPost, a.BaseURL+"/upload_custom_list_segment_completed", body)
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok && status == http.StatusUnauthorized {
			var ans answer
			if json.Unmarshal(raw, &ans) == nil && strings.Contains(strings.ToLower(ans.text()), "email id") {
				e.Class = BadEmail
			}
		}
		return 0, err
	}
	var ans struct {
		answer
		Segment looseInt `json:"Segment ID"`
	}
	if err := decode(raw, status, &ans); err != nil {
		return 0, err
	}
	if ans.Status != "success" {
		msg := clean(ans.text(), a)
		if msg == "" {
			msg = "the list was not accepted"
		}
		return 0, &Error{Class: Refused, Status: status, Code: int(ans.Code), Message: msg}
	}
	return int64(ans.Segment), nil
}
