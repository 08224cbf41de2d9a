import WebSocket from 'ws';

// Connect to UI WebSocket for real-time updates
const ws = new WebSocket('ws://localhost:8080/ui');

ws.on('message', (data) => {
  const message = JSON.parse(data.toString());
  console.log('Update:', message);
});

// Submit a job via REST API
const response = await fetch('http://localhost:8080/v1/jobs', {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({
    inlineConfig: {
      streamUrl: 'rtmp://example.com/live',
      outputFormat: 'mp4'
    },
    idempotencyKey: 'my-job-123'
  })
});

const job = await response.json();
console.log('Job created:', job.id);

// Update stream metadata
await fetch(`http://localhost:8080/v1/jobs/${job.id}/metadata`, {
  method: 'PUT',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({
    title: 'My Awesome Stream',
    description: 'Live streaming amazing content!',
    platform: 'youtube'
  })
});

// Control audio
await fetch(`http://localhost:8080/v1/jobs/${job.id}/mute`, {
  method: 'POST'
});

// Later unmute
await fetch(`http://localhost:8080/v1/jobs/${job.id}/unmute`, {
  method: 'POST'
});
